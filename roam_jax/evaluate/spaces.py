"""Whether an environment's spaces are those of a policy, and what differs where they are not."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium
import numpy as np

# Sizes of an array's axes; None = any size. In place of a whole shape None stands for a text.
Shape = tuple[int | None, ...] | None


def space_differences(
    env: gymnasium.Env,
    shapes: Mapping[str, Shape],
    *,
    action: tuple[int, ...],
    reach: float | None,
) -> list[str]:
    """What of an environment's spaces a policy cannot use, each as one phrase.

    Args:
        env: keys beyond `shapes` do not matter.
        shapes: key of the observation -> its shape.
        action: shape of an action.
        reach: actions lie in [-reach, reach]; None = whatever they lie in.
    """
    found, space = [], env.observation_space
    if not isinstance(space, gymnasium.spaces.Dict):
        found.append(f"observation: {space}, expected a Dict with {', '.join(shapes)}")
    else:
        for key, shape in shapes.items():
            if (there := _there(space, key, shape)) is not None:
                found.append(f"{key}: {there}, expected {_shown(shape)}")
    there = env.action_space
    if not isinstance(there, gymnasium.spaces.Box) or there.shape != action:
        found.append(f"action: {getattr(there, 'shape', None) or there} there, expected {action}")
    elif reach is not None and not (
        np.allclose(there.low, -reach) and np.allclose(there.high, reach)
    ):
        found.append(
            f"action: from {there.low.min():g} to {there.high.max():g} there, expected "
            f"{-reach:g} to {reach:g}"
        )
    return found


def require_spaces(
    env: gymnasium.Env,
    shapes: Mapping[str, Shape],
    *,
    action: tuple[int, ...],
    reach: float | None,
    what: str,
) -> None:
    """Refuses an environment with other spaces.

    Args:
        env, shapes, action, reach: as for `space_differences`.
        what: names the policy.

    Raises:
        ValueError: names each key, what it is there and what was expected.
    """
    if found := space_differences(env, shapes, action=action, reach=reach):
        raise ValueError(f"{env_name(env)} does not fit {what}: {'; '.join(found)}")


def env_name(env: gymnasium.Env) -> str:
    """What messages call an environment: its id where it is registered."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _there(space: gymnasium.spaces.Dict, key: str, shape: Shape) -> str | None:
    """What stands at a key where it does not fit; None where it does."""
    if key not in space.spaces:
        return f"not there (there are {', '.join(space.spaces)})"
    there = space[key]
    if shape is None:
        return None if isinstance(there, gymnasium.spaces.Text) else f"{there} there"
    sizes = there.shape
    if sizes is None or len(sizes) != len(shape):
        return f"shape {sizes} there" if sizes is not None else f"{there} there"
    fits = all(own is None or own == size for own, size in zip(shape, sizes, strict=True))
    return None if fits else f"shape {sizes} there"


def _shown(shape: Shape) -> str:
    if shape is None:
        return "a text"
    return f"({', '.join('any' if n is None else str(n) for n in shape)}{',' * (len(shape) == 1)})"
