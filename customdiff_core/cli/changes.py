"""`--set name=value`: any setting of a training, of its views and of its regularization images, checked as the stages check it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from customdiff_core.config import AugmentConfig, FinetuneConfig, Frozen, RetrieveConfig
from customdiff_core.errors import ConfigError, did_you_mean

Config = TypeVar("Config", bound=Frozen)
Changes = Mapping[str, Any]

STAGES: dict[str, type[Frozen]] = {"": FinetuneConfig, "augment.": AugmentConfig, "retrieve.": RetrieveConfig}


def read_changes(stated: Sequence[str]) -> Mapping[str, Changes]:
    """Read settings as a command line states them; the later of two of one name wins.

    Returns:
        By the names in STAGES, what is stated of each: values by the setting's name, such as "fetch.deadline_s".

    Raises:
        ConfigError: for what is no name=value, or a name that no setting has.
    """
    found: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    known = {name: stage for stage, kind in STAGES.items() for name in _names(kind, stage)}
    for one in stated:
        name, equals, text = one.partition("=")
        if not equals:
            raise ConfigError(f"--set: found {one!r}, need name=value; for example --set prior_weight=0")
        if name not in known:
            beside = [other for other in known if other.rpartition(".")[0] == name.rpartition(".")[0]] or list(known)
            raise ConfigError(f"--set: found {name!r}, need one of {', '.join(beside)}{did_you_mean(name, known)}")
        found[known[name]][name.removeprefix(known[name])] = _value(text)
    return found


def changed(config: Config, changes: Changes) -> Config:
    """Return the settings with what is stated of them.

    Raises:
        ValidationError: for a value that a setting does not take.
    """
    values = config.model_dump()
    for name, value in changes.items():
        *outer, last = name.split(".")
        place = values
        for part in outer:
            place[part] = place[part] or {}  # such as the early stop, which is off
            place = place[part]
        place[last] = value
    return type(config).model_validate(values)


def _names(kind: type[Frozen], place: str) -> Iterator[str]:
    """The settings of a config and of the configs in it, by their dotted names."""
    for name, field in kind.model_fields.items():
        yield place + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Frozen):
                yield from _names(inner, f"{place}{name}.")


def _value(text: str) -> Any:
    """JSON, such as false, null or ["a {}"]; a word by itself is that word."""
    try:
        return json.loads(text)
    except ValueError:
        return text
