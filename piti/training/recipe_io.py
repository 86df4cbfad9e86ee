"""Recipe files: reading, overriding keys, writing and comparing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from piti.core.errors import option, quoted
from piti.core.spec import choices
from piti.training.recipe import Recipe, RecipeError

RECIPES = Path(__file__).parents[1] / "recipes"
_LAUNCHERS = "accelerate"  # of its files, which configure processes and are not recipes
_ENDINGS = (".yaml", ".yml")

# Keys that may change when a run is resumed: those that affect only future steps, so that a run can be made longer,
# or stabilised after it diverged.
FREE_KEYS = {
    "workers", "compile", "checkpointing", "log_every", "tensorboard", "trackers", "preview", "checkpoint",
    "optimizer.clip", "data.root", "data.photographs", "data.cache", "data.cache_gib", "data.shards", "data.val_shards",
    "data.shard_cache", "data.shard_cache_gib", "data.shard_timeout", "data.max_bad", "perceptual.weights",
    "discriminator.features.weights", "generated.root", "base", "init", "prior", "latent_cache",
    "latent_cache_gib",
}  # fmt: skip
FREE_STAGE_KEYS = {"steps", "decay", "lr", "warmup"}


def recipe_names() -> list[str]:
    """The names of the recipes in the package, such as `street` and `baselines/spade`."""
    paths = (path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml"))
    return sorted(path.as_posix() for path in paths if path.parts[0] != _LAUNCHERS)


def recipe_path(recipe: Path | str) -> Path:
    """The file of a recipe, given by its path or, if there is no such file, by a name of `recipe_names`. Raises
    RecipeError that lists the known names, nearest first."""
    path, names = Path(recipe), recipe_names()
    if path.is_file():
        return path
    if str(recipe) in names:
        return RECIPES / f"{recipe}.yaml"
    if path.exists():
        raise RecipeError(f"{path}: is not a file; give the path of a recipe, or a name: {choices(path.name, names)}")
    word = path.stem if path.suffix in _ENDINGS else str(recipe)
    raise RecipeError(f"{path}: there is no such file or recipe; give a path, or a name: {choices(word, names)}")


def read_recipe(path: Path | str, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe, with `changes` of the form `stages.0.lr=1e-4` on top.

    path: a file, or the name of a bundled recipe, see `recipe_path`. Raises RecipeError and SpecError that name
    the file and key, what was expected, and the nearest known key.
    """
    path = recipe_path(path)
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except RecipeError as error:
        raise error.about(path) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected keys such as 'name' and 'stages', got {type(values).__name__}")
    return changed_recipe(values, list(changes), str(path))


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML's reader silently drops the first."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        assert node is not None
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            before, line = lines.get((key.tag, key.value)), key.start_mark.line + 1
            if before is not None:
                raise RecipeError(
                    f"'{quoted(key.value)}' occurs twice, in lines {before} and {line}, and one would be lost",
                    remedy="merge both",
                )
            lines[key.tag, key.value] = line
        return node


def _parsed(text: str) -> Any:
    """Parse YAML. Raises YAMLError, and RecipeError for duplicate keys."""
    return yaml.load(text, _EachKeyOnce)


def changed_recipe(values: dict[str, Any], changes: Sequence[str], source: str) -> Recipe:
    """A recipe from values with `changes` applied, as in `read_recipe`, with the same errors, naming `source`."""
    for change in changes:
        _apply(values, change)
    return Recipe.parse(values, f"{source} with {option('set')} {', '.join(changes)}" if changes else source)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe that `read_recipe` reads back as an equal one."""
    path.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")


def is_written(path: Path) -> bool:
    """Whether a file was written by `write_recipe`, so that it has no comments, order or aliases of a user."""
    try:
        text = path.read_text(encoding="utf-8")
        return text == yaml.safe_dump(yaml.safe_load(text), sort_keys=False)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False


def _apply(values: dict[str, Any], change: str) -> None:
    """Set one value, `key.of.it=value` with the value in YAML."""
    key, sign, text = change.partition("=")
    if not sign or not key:
        raise RecipeError("expected KEY=VALUE, such as stages.0.lr=1e-4", option="set", value=change)
    place: Any = values
    *parents, last = key.split(".")
    for part in parents:
        place = _inside(place, part, change)
    try:
        value = _parsed(text)
        value = value if text.lstrip().startswith(("'", '"')) else _number_or(value)  # what is quoted is text
    except RecipeError as error:
        raise error.about(f"{option('set')} {change}") from None
    except yaml.YAMLError:
        raise RecipeError(
            f"'{text}' is not YAML", remedy="quote it if it is text", option="set", value=change
        ) from None
    if isinstance(place, list):
        _inside(place, last, change)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"'{'.'.join(parents)}' is a single value without a key '{last}'", option="set", value=change)


def _inside(place: Any, part: str, change: str) -> Any:
    if isinstance(place, list):
        if not part.isdigit() or int(part) >= len(place):
            raise RecipeError(f"'{part}' is not an index from 0 to {len(place) - 1}", option="set", value=change)
        return place[int(part)]
    if isinstance(place, dict):
        if place.get(part) is None:  # absent, or null as in a recipe that a run wrote
            place[part] = {}
        return place[part]
    raise RecipeError(f"'{part}' lies inside a single value", option="set", value=change)


def _number_or(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as a string; convert it to a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The keys in which two recipes differ and which may not change when a run is resumed, with both values. A
    precision of `auto` in one of them does not count as a difference, since it depends on the device; but `auto` is
    never fp16, whose loss scales are part of a checkpoint."""
    before, after = flat(old.to_dict()), flat(new.to_dict())
    found = []
    for key in sorted(before.keys() | after.keys()):
        values = before.get(key), after.get(key)
        if key == "precision" and "auto" in values and not _scales_differ(old, new):
            continue
        if values[0] != values[1] and not _free(key):
            found.append(f"{key}: {values[0]!r} in the checkpoint, {values[1]!r} now")
    return found


def _scales_differ(old: Recipe, new: Recipe) -> bool:
    """Whether a resumed fp16 run would lack loss scales in a checkpoint of an `auto` run, or vice versa have too
    many."""
    return new.precision == "fp16" or (old.precision == "fp16" and new.adversarial)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested data, joining keys by dots; empty values are kept."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _free(key: str) -> bool:
    parts = key.split(".")
    if parts[0] == "stages":
        return len(parts) == 3 and parts[2] in FREE_STAGE_KEYS
    return any(".".join(parts[:n]) in FREE_KEYS for n in range(1, len(parts) + 1))
