"""The sizes that a checkpoint's tensors have: a run is resumed with its own, whatever has become the default since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ns_support.terminal import say


class _Plain(yaml.SafeLoader):
    """Reads objects as mappings: nothing is imported, so that a file of any version can be read."""


def _construct(loader: _Plain, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", _construct)


def keep_sizes(model: Any, checkpoint: Path) -> None:
    """Give a model's configuration the sizes that a run was trained with; with others the run can't be resumed.

    Says which settings this changes. Nothing happens where the run's `config.yml` is not beside its checkpoints.

    Args:
        model: configuration; `sizes_of_checkpoints` names its fields on which the tensors' sizes depend.
        checkpoint: to resume from.
    """
    saved = settings_beside(checkpoint)
    changed = []
    for name in getattr(model, "sizes_of_checkpoints", ()):
        now = getattr(model, name)
        if type(saved.get(name, now)) is type(now) and saved.get(name, now) != now:
            setattr(model, name, saved[name])
            changed.append(f"--pipeline.model.{name.replace('_', '-')} {saved[name]} (not {now})")
    if changed:
        say(f"The checkpoint's sizes are kept: {', '.join(changed)}.")


def settings_beside(checkpoint: Path) -> dict[str, Any]:
    """The model's settings in the `config.yml` of a checkpoint's run; empty if it can't be read."""
    try:
        content = yaml.load((checkpoint.parent.parent / "config.yml").read_text("utf8"), _Plain)
        found = content["pipeline"]["model"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
