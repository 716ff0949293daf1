"""What a difference says of a claim: margins, adjustment, one seed, and claims as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from liftplus.errors import UserError
from liftplus.evaluation.noise import MARGIN, Difference
from liftplus.reproduce import catalogue, verdicts


def claim(*kinds: str, metric: str = "overall", **margin: float) -> catalogue.Claim:
    tests = tuple(catalogue.Contrast(better="a", worse="b", metric=metric, kind=kind) for kind in kinds)
    return catalogue.Claim(claim="x", margin=margin, tests=tests)


def found(points: float, half: float | None, p: float | None = 0.5, seeds: int = 3) -> tuple[Difference, str]:
    return Difference("a", "b", "overall", points, half, p, p, seeds, 100), ""


@pytest.mark.parametrize(
    ("kind", "points", "half", "p", "seeds", "verdict"),
    [
        # The whole interval above minus the margin, 1 point.
        ("no_worse", 0.3, 1.2, 0.6, 3, "confirmed"),
        ("no_worse", -0.5, 0.4, 0.02, 3, "confirmed"),  # worse by more than noise, yet by less than the margin
        ("no_worse", 0.0, 1.0, 0.9, 3, "not contradicted"),
        ("no_worse", 0.25, 3.0, 0.85, 3, "not contradicted"),
        ("no_worse", -3.0, 2.7, 0.034, 3, "contradicted"),
        ("no_worse", -0.6, 0.57, 0.036, 3, "contradicted"),
        ("no_worse", 20.0, 1.0, 1e-9, 1, "not contradicted"),  # one seed shows nothing
        ("no_worse", 20.0, None, None, 3, "not contradicted"),
        # Within the margin on both sides.
        ("same", 0.1, 0.8, 0.8, 3, "confirmed"),
        ("same", 0.3, 0.8, 0.4, 3, "not contradicted"),
        ("same", 5.0, 0.8, 1e-6, 3, "contradicted"),
        ("same", -5.0, 0.8, 1e-6, 3, "contradicted"),
        ("same", 0.0, 0.0, 1.0, 3, "confirmed"),  # the same predictions
        ("same", 0.0, 0.0, 1.0, 1, "not contradicted"),
        ("better", 5.0, 0.8, 1e-6, 3, "confirmed"),
        ("better", -5.0, 0.8, 1e-6, 3, "contradicted"),
        ("better", 0.5, 0.8, 0.2, 3, "not confirmed"),
        ("better", 50.0, 0.8, 1e-9, 1, "not confirmed"),
        ("better", 50.0, None, None, 3, "not confirmed"),
    ],
)
def test_what_a_difference_says(
    kind: str, points: float, half: float | None, p: float | None, seeds: int, verdict: str
) -> None:
    judged = verdicts.decide("n", claim(kind), [found(points, half, p, seeds)])
    assert judged.tests[0].verdict == judged.verdict == verdict
    assert judged.tests[0].margin == (None if kind == "better" else 1.0)
    within = "" if kind == "better" else " with a margin of 1 point"
    assert judged.tests[0].sentence().endswith(f"{verdict[:1].upper()}{verdict[1:]}{within}.")


def test_an_adjustment_makes_nothing_easier() -> None:
    """Ten comparisons more change no verdict on "no worse", and do make "better" harder."""
    against = found(-3.0, 2.7, 0.034)
    alone = verdicts.decide("n", claim("no_worse"), [against])
    among = verdicts.decide("n", claim("no_worse", *["no_worse"] * 10), [against, *[found(5, 1, 0.9)] * 10])
    assert alone.tests[0] == among.tests[0] and among.verdict == "contradicted"
    better = found(3.0, 2.7, 0.034)
    assert verdicts.decide("n", claim("better"), [better]).verdict == "confirmed"
    assert verdicts.decide("n", claim("better", "better"), [better, better]).verdict == "not confirmed"
    both = verdicts.decide("n", claim("better", "no_worse"), [better, better])  # other kinds do not count
    assert both.verdict == "confirmed"


def test_a_margin_is_the_claims() -> None:
    assert verdicts.decide("n", claim("no_worse", overall=5.0), [found(-1.0, 3.0)]).verdict == "confirmed"
    judged = verdicts.decide("n", claim("no_worse", few=5.0), [found(-1.0, 3.0)])
    assert judged.tests[0].margin == MARGIN["overall"] and judged.verdict == "not contradicted"
    assert judged.tests[0].sentence().endswith("within noise. Not contradicted with a margin of 1 point.")


def test_a_claim_is_as_good_as_its_worst_comparison() -> None:
    good, weak, bad = found(0.3, 0.2), found(0.3, 3.0), found(-5.0, 1.0)
    missing = (None, "Missing: a.")
    for given, verdict in (
        ([good, good], "confirmed"),
        ([good, weak], "not contradicted"),
        ([weak, missing], "not run"),
        ([missing, bad], "contradicted"),
    ):
        assert verdicts.decide("n", claim("no_worse", "no_worse"), given).verdict == verdict
    assert verdicts.decide("n", claim(), []).verdict == "not run"


@pytest.mark.parametrize("margin", ["{ overall = 0 }", "{ overall = -1 }", "{ all = 1 }", "1", "{ few = nan }"])
def test_a_wrong_margin_is_refused(margin: str, tmp_path: Path) -> None:
    (tmp_path / "claims.toml").write_text(f'[one]\nclaim = "x"\nmargin = {margin}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"claims\.toml, one: margin"):
        catalogue.load(tmp_path)


def test_claims_with_a_margin_state_it() -> None:
    for name, one in catalogue.load().claims.items():
        stated = {test.metric for test in one.tests if test.kind != "better"}
        assert stated == one.margin.keys(), name
