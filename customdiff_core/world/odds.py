"""How often scenes are of which kind: what a model that sees many of them becomes good at."""

from pydantic import Field, NonNegativeFloat, ValidationInfo, field_validator

from customdiff_core.config import Frozen

Shares = tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]


class Odds(Frozen):
    """Shares of all things and scenes."""

    paints: Shares = Field(default=(0.35, 0.45, 0.2), description="of things in their own colours, another, or two")
    sizes: Shares = Field(default=(0.14, 0.74, 0.12), description="of things alone that are far, plain and near")
    together: float = Field(default=0.3, ge=0, le=1, description="of scenes with two things")

    @field_validator("paints", "sizes")
    @classmethod
    def _shares(cls, found: Shares, field: ValidationInfo) -> Shares:
        if abs(sum(found) - 1) > 1e-6:
            raise ValueError(f"{field.field_name}: found a sum of {sum(found):g}, need 1; give shares of all")
        return found
