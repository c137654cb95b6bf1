"""What a server says of the detector it serves: classes, categories, input size and limits.

    ServedModel.from_config(config).classes

The values are those `retinaserve build` wrote into the parameters of the ensemble's config.pbtxt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from retinaserve.training.errors import UserError


@dataclass(frozen=True)
class ServedModel:
    """The description of a served detector; a limit of 0 is one the server did not tell."""

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    size: tuple[int, int] | None = None  # H, W of the letterboxed picture
    score_threshold: float = 0.0
    max_image_pixels: int = 0
    max_image_bytes: int = 0
    steps: tuple[str, ...] = ()  # the models of the ensemble, in order

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, source: str = "the server") -> Self:
        """Read a config as either protocol returns it. Raises UserError for a model that is no detector."""
        values = {key: item.get("string_value", "") for key, item in config.get("parameters", {}).items()}
        name = str(config.get("name", ""))
        try:
            classes = tuple(str(item) for item in json.loads(values["classes"]))
            ids = json.loads(values.get("category_ids") or "null") or range(1, len(classes) + 1)
            size = json.loads(values.get("size") or "null")
            model = cls(
                name=name,
                classes=classes,
                category_ids=tuple(int(item) for item in ids),
                size=(int(size[0]), int(size[1])) if size else None,
                score_threshold=float(values.get("score_threshold") or 0),
                max_image_pixels=int(values.get("max_image_pixels") or 0),
                max_image_bytes=int(values.get("max_image_bytes") or 0),
                steps=tuple(step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", [])),
            )
        except KeyError:
            hint = "serve a repository made by `retinaserve build`"
            raise UserError(f"model {name!r} at {source} does not say its class names", hint) from None
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(f"model {name!r} at {source} has a parameter that is wrong: {error}") from None
        if len(model.category_ids) != len(classes):
            raise UserError(
                f"model {name!r} at {source} has {len(classes)} classes and {len(model.category_ids)} ids"
            )
        return model
