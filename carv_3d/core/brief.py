"""Short texts for objects of the public face, in place of an address."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

from carv_3d.errors import shown


class Brief:
    """A class whose repr is its name and some attributes, as `GaussianTeacher(std=0.5, latent_size=8)`."""

    brief: ClassVar[tuple[str, ...]] = ()  # attributes, `options.objective` among them

    def __repr__(self) -> str:
        values = ((path.rpartition(".")[2], _brief(attrgetter(path)(self))) for path in self.brief)
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in values)})"


def _brief(value: Any) -> str:
    return shown(value, 160) if isinstance(value, (str, list, dict)) else repr(value)
