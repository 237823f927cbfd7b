"""How the losses of several regions become one, and whether they pull the same way.

Weights are fixed; or learned as variances (Kendall, Gal & Cipolla 2018, arXiv:1705.07115); or moved
until every region's gradient at the last cells is as large (GradNorm, Chen et al. 2018,
arXiv:1711.02257). Beside them stand two things that say whether regions are in each other's way:
`gradient_cosines`, of what they share, and the routing by which a region trains its decoder alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from roam_jax.contracts import Params
from roam_jax.spelling import check_choice

KINDS = FIXED, UNCERTAINTY, GRADNORM = ("fixed", "uncertainty", "gradnorm")
# Where the parameters of a balance lie in the tree.
SECTION = "balance"
# A balance has some hundreds of steps to find its weights, which are logarithms: they move so many
# times faster than other parameters, GradNorm's rate of 0.025 at optim.lr = 1e-3.
SPEED = 25.0
# Adam does not see the scale of a gradient but clipping by the global norm does: these stay out.
GRADIENT_SCALE = 1e-3

Losses = Mapping[str, Float[Array, ""]]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Balance:
    """The weights of region losses.

    Args:
        kind: one of `KINDS`.
        names: the regions that have a loss.
        weights: region -> factor that the config gives, whatever the kind finds; 1 where none is.
        initial: region -> loss of a model that knows nothing, such as log C of C classes; what
            GradNorm measures progress by, so that a lucky initialisation has no say.
        alpha: GradNorm's asymmetry: 0 makes gradients equal, more favours regions that learn
            slower.
        decoder_only: regions whose loss trains their decoder alone.

    Raises:
        ValueError: no such kind or region, a factor below 0 or not finite, or GradNorm where it
            cannot have its gradients.
    """

    kind: str
    names: tuple[str, ...]
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    initial: Mapping[str, float] = dataclasses.field(default_factory=dict)
    alpha: float = 0.0
    decoder_only: tuple[str, ...] = ()

    def __post_init__(self):
        check_choice("loss.balance", self.kind, KINDS)
        for name in self.decoder_only:
            check_choice("loss.decoder_only", name, self.names)
        for name, weight in self.weights.items():
            check_choice("loss.weights", name, self.names)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"loss.weights: {name} = {weight}: expected a finite number of 0 or more"
                )
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(
                f"loss.gradnorm_alpha = {self.alpha}: expected a finite number of 0 or more"
            )
        if self.kind == GRADNORM:
            self._check_gradnorm()

    def _check_gradnorm(self) -> None:
        if self.decoder_only:
            raise ValueError(
                f"loss.balance = 'gradnorm' with loss.decoder_only = {self.decoder_only}: the "
                "losses of these regions have no gradient at the cells, so there is none to "
                "balance; expected loss.decoder_only = (), or loss.balance = 'fixed' or "
                "'uncertainty'"
            )
        if len(self.names) < 2:
            raise ValueError(
                f"loss.balance = 'gradnorm' with one predicted region ({', '.join(self.names)}): "
                "there is no other gradient to balance it with; expected two regions or more, or "
                "loss.balance = 'fixed'"
            )
        for name in self.names:
            value = self.initial.get(name, 0.0)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"loss.balance = 'gradnorm': initial loss of {name} = {value}, expected a "
                    "finite number above 0"
                )

    @property
    def needs_norms(self) -> bool:
        """Whether a call has to be given gradient norms."""
        return self.kind == GRADNORM

    def init(self) -> Params:
        """Parameters of the tree's `SECTION`: zeros in the order of `names`; {} of fixed weights.

        With them all weights are what the config gives.
        """
        leaf = {UNCERTAINTY: "log_variance", GRADNORM: "log_weight"}.get(self.kind)
        return {leaf: jnp.zeros(len(self.names), jnp.float32)} if leaf else {}

    def route(self, cells: Any, region: str) -> Any:
        """What a region's decoder reads: cells that its loss trains, or only looks at."""
        return jax.lax.stop_gradient(cells) if region in self.decoder_only else cells

    def __call__(
        self,
        params: Params,
        losses: Losses,
        norms: Losses | None = None,
        *,
        counted: Mapping[str, Bool[Array, ""]] | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss that trains, and "weight/REGION" of every region.

        Args:
            params: as `init` gives them.
            losses: region -> its loss; one of exactly 0 (no cell of it was noised) takes no part.
            norms: region -> |dloss/dcells|, from `gradient_norms`; of GradNorm alone.
            counted: region -> whether it takes part, where one batch alone does not say; None =
                where its loss is not 0.

        Raises:
            ValueError: losses of other regions, or no norms where they are needed.
        """
        for what, given in (("losses", losses), ("norms", norms if self.needs_norms else losses)):
            if given is None or set(given) != set(self.names):
                raise ValueError(
                    f"{what} of {', '.join(given) if given else 'no region'}: expected "
                    f"{', '.join(self.names)}"
                )
        loss = jnp.stack([losses[name] for name in self.names])
        fixed = jnp.array([self.weights.get(name, 1.0) for name in self.names], jnp.float32)
        factors, extra = jnp.ones_like(loss), 0.0
        if self.kind == UNCERTAINTY:
            counts = loss > 0
            if counted is not None:
                counts = jnp.stack([counted[name] for name in self.names])
            factors, terms = _uncertainty(params["log_variance"], counts)
            extra = jnp.sum(fixed * terms)
        elif self.kind == GRADNORM:
            norm = jnp.stack([norms[name] for name in self.names])
            initial = jnp.array([self.initial[name] for name in self.names], jnp.float32)
            factors, terms = _gradnorm(
                params["log_weight"], loss, norm, initial=initial, alpha=self.alpha
            )
            extra = jnp.sum(terms)
        weights = fixed * factors
        metrics = {f"weight/{name}": weights[i] for i, name in enumerate(self.names)}
        return jnp.sum(weights * loss) + extra, jax.lax.stop_gradient(metrics)


def gradient_norms(losses_of: Callable[[Any], Losses], cells: Any) -> dict[str, Float[Array, ""]]:
    """Norm of the gradient of each region's loss at the cells; it carries no gradient itself.

    Args:
        losses_of: from cells to region -> loss; the decoders, one pass forward and for each region
            one backward.
        cells: a tree of arrays.
    """
    names, gradients = region_gradients(losses_of, jax.lax.stop_gradient(cells))
    return jax.lax.stop_gradient(compare_gradients(names, gradients)[0])


def gradient_cosines(
    losses_of: Callable[[Params], Losses], params: Params
) -> tuple[dict[str, Float[Array, ""]], dict[str, Float[Array, ""]]]:
    """Whether regions pull shared parameters the same way.

    Args:
        losses_of: from parameters to region -> loss.
        params: what regions share, such as the blocks.

    Returns:
        As `compare_gradients`.
    """
    return compare_gradients(*region_gradients(losses_of, params))


def region_gradients(losses_of: Callable[[Any], Losses], at: Any) -> tuple[tuple[str, ...], Any]:
    """Names of the losses in alphabetical order, and their gradients at `at`, stacked on axis 0."""
    names = tuple(jax.eval_shape(losses_of, at))

    def stacked(at):
        losses = losses_of(at)
        return jnp.stack([losses[name] for name in names])

    _, backward = jax.vjp(stacked, at)
    # One after another: side by side they would hold the activations of all of them.
    return names, jax.lax.map(lambda row: backward(row)[0], jnp.eye(len(names)))


def compare_gradients(
    names: Sequence[str], gradients: Any
) -> tuple[dict[str, Float[Array, ""]], dict[str, Float[Array, ""]]]:
    """Norms of gradients, and how they lie to each other.

    Args:
        names, gradients: from `region_gradients`, or a sum of those of several batches.

    Returns:
        Norm of each region's gradient, and "a|b" -> cosine of each pair, in the order of `names`: 1
        is the same direction, 0 unrelated, below 0 one undoes the other. With a gradient of
        exactly 0 the cosine is 0.
    """
    flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)]
    products = sum(jnp.matmul(x, x.T, precision="highest") for x in flat)
    norms = jnp.sqrt(products.diagonal())
    safe = jnp.where(norms > 0, norms, 1.0)
    cosines = products / safe[:, None] / safe[None, :]
    pairs = {
        f"{a}|{b}": cosines[i, j] for i, a in enumerate(names) for j, b in enumerate(names) if i < j
    }
    return {name: norms[i] for i, name in enumerate(names)}, pairs


def pair_matrix(
    pairs: Mapping[str, float], names: Sequence[str]
) -> Float[np.ndarray, "regions regions"]:
    """The symmetric matrix of `gradient_cosines`' pairs, with ones on its diagonal."""
    matrix = np.eye(len(names))
    for pair, value in pairs.items():
        i, j = (names.index(name) for name in pair.split("|"))
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _uncertainty(log_variance: Array, counts: Array) -> tuple[Array, Array]:
    """exp(-s) L + s, twice Kendall's term of a regression, so that weights start as 1.

    It is least at exp(s) = L. His term of a classification, exp(-s) L + s / 2, is least where the
    weight is half of that too, so one form serves both.
    """
    log_variance = _quick(log_variance)
    return jnp.exp(-log_variance), jnp.where(counts, log_variance, 0.0)


def _gradnorm(
    log_weight: Array, loss: Array, norm: Array, *, initial: Array, alpha: float
) -> tuple[Array, Array]:
    """Weights that sum to the number of regions, and the terms that move them, of value 0.

    The paper updates the weights and then scales them to that sum; a softmax is that and keeps them
    positive. Its target is held fixed while they move, and the model does not see their term.
    """
    loss, norm = jax.lax.stop_gradient((loss, norm))
    weights = len(loss) * jax.nn.softmax(_quick(log_weight))
    weighted = weights * norm
    counts = loss > 0

    def mean(values):
        return jnp.sum(jnp.where(counts, values, 0.0)) / jnp.maximum(jnp.sum(counts), 1)

    progress = loss / initial
    rate = progress / jnp.maximum(mean(progress), jnp.finfo(jnp.float32).tiny)
    target = jax.lax.stop_gradient(mean(weighted)) * rate**alpha
    terms = jnp.where(counts, jnp.abs(weighted - target), 0.0)
    # In units of the mean norm, so that no scale of the losses matters.
    terms = terms / jnp.maximum(jax.lax.stop_gradient(mean(weighted)), jnp.finfo(jnp.float32).tiny)
    return jax.lax.stop_gradient(weights), terms - jax.lax.stop_gradient(terms)


def _quick(leaf: Array) -> Array:
    """SPEED times a parameter, with GRADIENT_SCALE as its derivative."""
    seen = GRADIENT_SCALE * leaf
    return seen + jax.lax.stop_gradient(SPEED * leaf - seen)
