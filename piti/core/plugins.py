"""Plugins: installed packages that register kinds of conditions, samplers and others."""

from __future__ import annotations

from importlib.metadata import entry_points

from piti.core.errors import UserError

GROUP = "piti.plugins"
"""The entry-point group of plugins' modules."""


class PluginError(UserError):
    """A plugin cannot be loaded. The message names it."""


def load_plugins() -> list[str]:
    """Import the modules of installed packages in `GROUP`, and return the names of their entry points.

    Raises PluginError, naming the package, if a module cannot be imported.
    """
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    for entry in found:
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            raise PluginError(
                f"the plugin '{entry.name}' of the package {package} cannot be imported ({error})",
                remedy="repair the package, or uninstall it",
            ) from error
    return [entry.name for entry in found]
