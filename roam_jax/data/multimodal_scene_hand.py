"""The hand of the multimodal scene: a point with drag that commands push about.

It heads for a random place with a trembling hand; walls stop it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from roam_jax.data.scene_random import between

# Half the width of the hand; it stays that far from the walls. In widths of the frame.
HAND_RADIUS = 0.13
# Commands from one frame to the next.
COMMANDS_A_FRAME = 4
# Share of the speed that is left after a command, and what a full command adds, widths a command.
DRAG, PUSH = 0.8, 0.02
FASTEST = PUSH / (1 - DRAG)
# How the hand is steered: towards the goal, against its own speed, and by chance.
TOWARDS, BRAKE, TREMBLE = 4.0, 8.0, 0.4


class Hand(NamedTuple):
    """What the hand does: `places` (T, 2), `state` (T, 4) and `commands` (C, 2).

    Places are in widths of the frame. A state is the place in [-1, 1] and the speed in shares of
    the highest; commands lie in [-1, 1].
    """

    places: Array
    state: Array
    commands: Array


def move_hand(
    start: Float[Array, " 2"], goal: Float[Array, " 2"], tremble: Float[Array, "C 2"]
) -> Hand:
    """A hand that rests at `start` and is then steered to a random place.

    Args:
        start: in widths of the frame.
        goal, tremble: random numbers in [0, 1), a row of `tremble` for each command.
    """
    goal = between(HAND_RADIUS, 1 - HAND_RADIUS, goal)
    start = jnp.clip(start, HAND_RADIUS, 1 - HAND_RADIUS)

    def step(state, noise):
        place, speed = state
        command = jnp.clip(TOWARDS * (goal - place) - BRAKE * speed + noise, -1, 1)
        state = carry_out(place, speed, command)
        return state, (*state, command)

    _, (places, speeds, commands) = jax.lax.scan(
        step, (start, jnp.zeros(2)), between(-TREMBLE, TREMBLE, tremble)
    )
    places = jnp.concatenate([start[None], places])[::COMMANDS_A_FRAME]
    speeds = jnp.concatenate([jnp.zeros((1, 2)), speeds])[::COMMANDS_A_FRAME]
    state = jnp.concatenate([2 * places - 1, speeds / FASTEST], axis=-1)
    return Hand(places, state, commands)


def carry_out(
    place: Float[Array, " 2"], speed: Float[Array, " 2"], command: Float[Array, " 2"]
) -> tuple[Float[Array, " 2"], Float[Array, " 2"]]:
    """Place and speed after a command; a wall takes the speed towards it."""
    speed = DRAG * speed + PUSH * command
    free = place + speed
    place = jnp.clip(free, HAND_RADIUS, 1 - HAND_RADIUS)
    return place, jnp.where(free == place, speed, 0.0)
