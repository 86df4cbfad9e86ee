"""The command-line interface: parse, call the library, print."""

from __future__ import annotations

from typing import Annotated

import typer

from piti.cli.console import print_error
from piti.cli.data import prepare_app
from piti.cli.edit import edit
from piti.cli.evaluate import evaluate_app
from piti.cli.models import export, import_, models
from piti.cli.reproduce import reproduce
from piti.cli.studio import studio
from piti.cli.study import study_app
from piti.cli.train import distill, train
from piti.cli.translate import translate

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(train)
app.command()(distill)
app.command()(translate)
app.command()(edit)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(study_app, name="study")
app.command()(reproduce)
app.command()(studio)
app.add_typer(prepare_app, name="prepare")
app.command()(models)
app.command("import")(import_)
app.command()(export)


def _print_version(asked: bool) -> None:
    if asked:
        from piti import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Image-to-image translation with a pretrained diffusion prior (PITI)."""


def main() -> None:
    """Run the command line; user errors and lack of memory are printed as one message, without a traceback."""
    from piti.core.distributed import FailedElsewhere
    from piti.core.errors import UserError, first_line
    from piti.core.plugins import load_plugins
    from piti.core.system import write_all_letters

    write_all_letters()
    try:
        load_plugins()
        app()
    except FailedElsewhere:  # the failed process prints the reason
        raise SystemExit(1) from None
    except (UserError, OSError) as error:
        print_error(error)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (MemoryError, RuntimeError) as error:
        from piti.core.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        remedy = "use smaller batches or images, or --dtype bf16"
        print_error(UserError(f"out of memory: {first_line(error)}", remedy=remedy))
        raise SystemExit(1) from None
