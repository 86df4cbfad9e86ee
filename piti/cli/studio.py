"""`piti studio`: paint, translate and edit in a browser, and over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

_LIMITS = "Limits"


def studio(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A bundled model, a folder, a training run, or a hub id; repeatable. street and sketch."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any that is free.")] = 7860,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name that the studio answers to, such as a proxy's; repeatable.")
    ] = None,
    root_path: Annotated[str, typer.Option(help="Path under which a proxy serves the studio, such as /studio.")] = "",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps …; the fastest there is by default.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    max_upload: Annotated[int, typer.Option(min=1, help="MiB of a request.", rich_help_panel=_LIMITS)] = 24,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture.", rich_help_panel=_LIMITS)] = 16_000_000,
    max_samples: Annotated[int, typer.Option(min=1, help="Pictures of a request.", rich_help_panel=_LIMITS)] = 8,
    max_steps: Annotated[int, typer.Option(min=1, help="Steps that may be asked for.", rich_help_panel=_LIMITS)] = 250,
    max_size: Annotated[
        int, typer.Option(min=1, help="Short side that may be asked for.", rich_help_panel=_LIMITS)
    ] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Jobs that wait.", rich_help_panel=_LIMITS)] = 32,
    max_seconds: Annotated[float, typer.Option(min=1, help="How long a job runs.", rich_help_panel=_LIMITS)] = 120,
    max_kept: Annotated[
        int, typer.Option(min=1, help="Results that can be fetched again.", rich_help_panel=_LIMITS)
    ] = 200,
) -> None:
    """Serve a page on which masks are painted, sketches drawn, and photographs made of them and edited.

    The same over HTTP: /docs lists the routes. Nothing is fetched from, or sent to, any other machine.
    """
    from piti.studio.http.app import listening, need_ui, serve, warning_of

    need_ui()
    with listening(host, port) as bound:  # before the models are loaded
        from piti.cli.app import log
        from piti.studio.service.schema import Limits
        from piti.studio.service.service import Studio

        limits = Limits(
            upload_bytes=max_upload * 2**20,
            pixels=max_pixels,
            samples=max_samples,
            steps=max_steps,
            size=max_size,
            waiting=max_waiting,
            seconds=max_seconds,
            kept_results=max_kept,
        )
        warning = warning_of(host)
        if warning:
            log.print(f"[bold yellow]warning:[/] {warning}", soft_wrap=True)
        log.print(f"loading {' and '.join(model or ['street', 'sketch'])} …")
        loaded = Studio(tuple(model or ("street", "sketch")), limits, device)

        def ready(address: str) -> None:
            typer.echo(f"the studio is at {address} (Ctrl-C ends it)")
            if open_:
                import webbrowser

                webbrowser.open(address)

        serve(loaded, host, port, allow_host or (), ready, bound, root_path)
