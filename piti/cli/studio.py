"""`piti studio`: paint, translate and edit in a browser, and over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from piti.cli.console import log, print_warning, quick_imports
from piti.cli.groups import with_groups
from piti.cli.options import ComputeFlags, Device

if TYPE_CHECKING:
    from piti.studio.service.schema import Limits

_LIMITS = "Limits"
_MODELS = ("street", "sketch")


@dataclass(frozen=True)
class LimitFlags:
    """Limits of a studio."""

    max_upload: Annotated[int, Option(min=1, help="Largest request, in MiB.", rich_help_panel=_LIMITS)] = 24
    max_pixels: Annotated[int, Option(min=1, help="Largest image, in pixels.", rich_help_panel=_LIMITS)] = 16_000_000
    max_samples: Annotated[int, Option(min=1, help="Most images per request.", rich_help_panel=_LIMITS)] = 8
    max_steps: Annotated[
        int, Option(min=1, help="Most steps per request, of base and upsampler each.", rich_help_panel=_LIMITS)
    ] = 250
    max_size: Annotated[
        int, Option(min=1, help="Largest short side per request, in pixels.", rich_help_panel=_LIMITS)
    ] = 1024
    max_waiting: Annotated[int, Option(min=1, help="Most waiting jobs.", rich_help_panel=_LIMITS)] = 32
    max_seconds: Annotated[
        float, Option(min=1, help="Longest run time of a job, in seconds.", rich_help_panel=_LIMITS)
    ] = 120
    max_kept: Annotated[int, Option(min=1, help="Most results kept for download.", rich_help_panel=_LIMITS)] = 200

    def limits(self) -> Limits:
        """The flags as `Limits`."""
        from piti.studio.service.schema import Limits

        return Limits(
            upload_bytes=self.max_upload * 2**20,
            pixels=self.max_pixels,
            samples=self.max_samples,
            steps=self.max_steps,
            size=self.max_size,
            waiting=self.max_waiting,
            seconds=self.max_seconds,
            kept_results=self.max_kept,
        )


@with_groups
def studio(
    limits: LimitFlags,
    computed: ComputeFlags,
    model: Annotated[
        list[str] | None,
        Option(
            help="Models to serve: a bundled model, a folder, a training run, or a hub id. Repeatable; by default "
            "street "
            "and sketch."
        ),
    ] = None,
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen on; 0 for any free port.")] = 7860,
    allow_host: Annotated[
        list[str] | None, Option(help="Another host name to accept, such as a proxy's; repeatable.")
    ] = None,
    root_path: Annotated[str, Option(help="Path under which a proxy serves the studio, such as /studio.")] = "",
    device: Device = None,
    open_: Annotated[bool, Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve a web page to paint masks, draw sketches, and generate and edit images.

    The same is available over HTTP: /docs lists the routes. No other machine is contacted.
    """
    from piti.studio.http.app import check_names, listening, need_ui, serve, warning_of

    need_ui()
    check_names(host, allow_host or (), root_path)
    with listening(host, port) as bound:  # before the models are loaded
        with quick_imports():
            from piti.studio.service.service import Studio

        warning = warning_of(host)
        if warning:
            print_warning(warning)
        computing = computed.on(device)
        computing.check()
        names = tuple(model or _MODELS)
        how = ", and compiling their blocks, which takes minutes" if computing.compile else ""
        log.print(f"loading {' and '.join(names)}{how} …", markup=False)
        loaded = Studio(names, limits.limits(), computing)

        def ready(address: str) -> None:
            typer.echo(f"the studio is at {address} (Ctrl-C ends it)")
            if open_:
                typer.launch(address)

        serve(loaded, host, port, allow_host or (), ready, bound, root_path)
