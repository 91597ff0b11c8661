"""Closed-form integrals of the squared-exponential kernel against diffusive Green's functions.

The equation ∂y/∂t = S u − λ y + D ∂²y/∂x² on [0, 1] with y = 0 at both ends has the Green's
function Σ_n 2 sin(w_n x) sin(w_n ξ) e^{−β_n (t−τ)}, w_n = nπ, β_n = λ + D w_n²
(López-Lopera, Durrande & Álvarez 2019, section 3). Under u ~ GP(0, k_x k_t), with
k(a, b) = exp(−((a − b)/θ)²), every covariance is a sum over modes of the one-dimensional
integrals below. θ is √2 times the lengthscale of :func:`dklfm.systems.gaussian.rbf`.

Textbook forms multiply exp((θβ/2)²) by a difference of error functions, which loses all digits
beyond θβ/2 ≈ 5. Here the exponentials are absorbed into erfcx(z) = e^{z²} erfc(z) and Faddeeva's
w(z) = e^{−z²} erfc(−iz), so each term is bounded and the absolute error stays near rounding.

Functions of ``ArrayLike`` arguments broadcast over them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import erfcx, wofz

from dklfm.systems.base import Array

ASYMPTOTIC = 7.0
"""Half a rate or wavenumber times θ from which integrals over k are done by parts."""
ORDER = 16
"""How many times: the remainder is 2e-10 of the leading term, or less."""
_HALF_SQRT_PI = np.sqrt(np.pi) / 2


def kernel(a: ArrayLike, b: ArrayLike, theta: float) -> Array:
    """k(a, b) = exp(−((a − b)/θ)²)."""
    return np.exp(-((np.subtract(a, b) / theta) ** 2))


def relaxation(t: ArrayLike, s: ArrayLike, rate: ArrayLike, theta: float) -> Array:
    """h(t, s; β) = ∫₀ᵗ e^{−β(t−τ)} k(τ, s) dτ.

    With v = θβ/2 and d = (t − s)/θ, completing the square gives
    h = θ√π/2 [e^{−d²} erfcx(v − d) − e^{−βt − s²/θ²} erfcx(v + s/θ)]; where v < d,
    erfcx(v − d) is reflected, for it grows like 2 e^{(v−d)²}.

    Args:
        t: end of the integral, non-negative.
        s: the kernel's other argument, non-negative.
        rate: decay rate β, non-negative.
        theta: θ of the kernel, positive.
    """
    t, s, rate = np.asarray(t), np.asarray(s), np.asarray(rate)
    v, d = theta * rate / 2, (t - s) / theta
    gap = v - d
    negative = gap < 0
    reflected = 2 * np.exp(v * (v - 2 * d), where=negative, out=np.zeros_like(gap))
    head = np.where(negative, -1.0, 1.0) * erfcx(np.abs(gap)) * np.exp(-(d**2)) + reflected
    tail = erfcx(v + s / theta) * np.exp(-((s / theta) ** 2)) * np.exp(-rate * t)
    return theta * _HALF_SQRT_PI * (head - tail)


def scaled_derivatives(a: ArrayLike, b: ArrayLike, theta: float, order: int) -> Array:
    """(θ ∂/∂a)ʲ k(a, b) = (−1)ʲ H_j(d) e^{−d²} with d = (a − b)/θ, for j = 0 … order − 1.

    H_j are the physicists' Hermite polynomials, by their three-term recurrence.

    Returns:
        ``order x ...`` values.
    """
    d = np.subtract(a, b) / theta
    values = np.empty((order, *d.shape))
    values[0] = np.exp(-(d**2))
    values[1] = -2 * d * values[0]
    for j in range(2, order):
        values[j] = -2 * (d * values[j - 1] + (j - 1) * values[j - 2])
    return values


def sine_transform(n: Array, x: Array, theta: float) -> Array:
    """C_n(x) = ∫₀¹ sin(nπξ) k(ξ, x) dξ.

    With q = nπθ/2, l = x/θ and r = (1 − x)/θ,
    C_n = θ√π/2 [2 e^{−q²} sin(nπx) + e^{−l²} Im w(q + il) − (−1)ⁿ e^{−r²} Im w(q + ir)].
    From q = ``ASYMPTOTIC`` on, the first term has vanished and the others are, to 1e-11, the
    first of the integrations by parts Σ_j (−1)ʲ [k⁽²ʲ⁾(0, x) − (−1)ⁿ k⁽²ʲ⁾(1, x)]/(nπ)²ʲ⁺¹.

    Args:
        n: ``mode`` numbers, increasing integers from 1.
        x: ``point`` positions in [0, 1].
        theta: θ of the kernel, positive.

    Returns:
        ``mode x point`` values.
    """
    wavenumber = np.pi * n[:, None]
    parity = 1.0 - 2.0 * (n[:, None] % 2)
    slow = int(np.searchsorted(wavenumber[:, 0] * theta / 2, ASYMPTOTIC))

    low, left, right = wavenumber[:slow], x / theta, (1 - x) / theta
    q = low * theta / 2
    at_zero = np.exp(-(left**2)) * wofz(q + 1j * left).imag
    at_one = np.exp(-(right**2)) * wofz(q + 1j * right).imag
    interior = 2 * np.exp(-(q**2)) * np.sin(low * x)
    exact = theta * _HALF_SQRT_PI * (interior + at_zero - parity[:slow] * at_one)

    high = wavenumber[slow:]
    powers = np.vander(-1 / (high[:, 0] * theta) ** 2, ORDER // 2, increasing=True) / high
    edge_zero, edge_one = (
        powers @ scaled_derivatives(end, x, theta, ORDER)[::2] for end in (0.0, 1.0)
    )
    return np.concatenate([exact, edge_zero - parity[slow:] * edge_one])


def sine_overlap(n: Array, theta: float) -> Array:
    """C_nm = ∫₀¹∫₀¹ sin(nπξ) sin(mπζ) k(ξ, ζ) dξ dζ.

    Integrating along ξ − ζ = σ first leaves one-dimensional integrals over σ: with
    a = nπ, b = mπ, J_a = ∫₀¹ sin(aσ) k(σ, 0) dσ = C_n(0),
    C_nm = 2 (a J_b − b J_a)/(a² − b²) for even n + m ≠ 2n, zero for odd n + m, and
    C_nn = ∫₀¹ (1 − σ) cos(aσ) k(σ, 0) dσ + J_a/a.

    Args:
        n: ``mode`` numbers, increasing integers from 1.
        theta: θ of the kernel, positive.

    Returns:
        ``mode x mode`` matrix.
    """
    a, q = n * np.pi, n * np.pi * theta / 2
    sine = sine_transform(n, np.zeros(1), theta)[:, 0]
    end = (1 - 2 * (n % 2)) * np.exp(-1 / theta**2)
    cosine = theta * _HALF_SQRT_PI * (np.exp(-(q**2)) - end * wofz(q + 1j / theta).real)
    # ∫σ cos(aσ) k dσ by parts, from σ k = −(θ²/2) dk/dσ.
    first_moment = theta**2 / 2 * (1 - end - a * sine)
    diagonal = cosine - first_moment + sine / a

    difference = a[:, None] ** 2 - a**2
    np.fill_diagonal(difference, 1.0)
    product = np.outer(a, sine)
    even = (n[:, None] + n) % 2 == 0
    overlap = np.where(even, 2 * (product - product.T) / difference, 0.0)
    np.fill_diagonal(overlap, diagonal)
    return overlap


def steady_state(x: Array, s: Array, decay: float, diffusion: float, theta: float) -> Array:
    """q(x, s), the solution of λq − D ∂²q/∂x² = k(x, s) with q = 0 at x = 0 and x = 1.

    It equals Σ_n 2 sin(nπx) C_n(s)/β_n with no mode left out. Without ends, the response is
    [h(x, s; κ) + h(1 − x, 1 − s; κ)]/(2Dκ) with κ² = λ/D and h from :func:`relaxation`; two
    hyperbolic sines cancel it at the ends.

    Args:
        x: ``point`` positions in [0, 1].
        s: ``point'`` values of the kernel's other argument, in [0, 1].
        decay: λ > 0.
        diffusion: D > 0.
        theta: θ of the kernel, positive.

    Returns:
        ``point x point'`` values.
    """
    kappa = np.sqrt(decay / diffusion)
    y = np.concatenate([x, [0.0, 1.0]])[:, None]
    endless = relaxation(y, s, kappa, theta) + relaxation(1 - y, 1 - s, kappa, theta)
    # sinh(κy)/sinh κ, without overflow.
    lift = np.exp(-kappa * (1 - y)) * np.expm1(-2 * kappa * y) / np.expm1(-2 * kappa)
    mirrored = np.exp(-kappa * y) * np.expm1(-2 * kappa * (1 - y)) / np.expm1(-2 * kappa)
    bounded = endless - mirrored * endless[-2] - lift * endless[-1]
    return bounded[:-2] / (2 * diffusion * kappa)
