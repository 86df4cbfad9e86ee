"""Installed packages that add to this one: kinds of conditions, samplers, and what else is known by names."""

from __future__ import annotations

from importlib.metadata import entry_points

from piti.core.errors import UserError

GROUP = "piti.plugins"
"""The group of entry points in which such a package names the module that adds to this one."""


class PluginError(UserError):
    """An installed package cannot add what it wants to add. The message names it."""


def load_plugins() -> list[str]:
    """Import the modules that installed packages name in `GROUP`, and return their entry points' names.

    Raises PluginError that names the package, for a module that cannot be imported.
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
