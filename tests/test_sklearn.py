"""The estimators: scikit-learn's own checks, its models' coefficients, and what X may be."""

import itertools
import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pullback as pb
import pytest
import sklearn
from pullback.interop.sklearn import LinearClassifier, LinearRegressor
from pullback.tables.losses import LOSSES
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import (
    GammaRegressor,
    HuberRegressor,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    TweedieRegressor,
)
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

NOT_SMOOTH = {"hinge", "quantile", "relu_mse"}
REGRESSION = [
    name
    for name, row in LOSSES.items()
    if name not in NOT_SMOOTH and not row.of_classes and row.targets.test(np.array(2.0))
]
CLASSES = [name for name in LOSSES if name not in {*NOT_SMOOTH, *REGRESSION}]


def estimator(loss, **options):
    return (LinearRegressor if loss in REGRESSION else LinearClassifier)(loss, **options)


def data(loss, n=300, d=4, seed=0):
    """Return X and targets or labels."""
    X, y, _, _ = LOSSES[loss].example(seed, n, d, np.float64)
    return X + 1, y


# --- scikit-learn's checks ------------------------------------------------------------------------

# Every loss passes all checks with "auto", and with each solver by name those that compare what
# fits end at: all checks with all solvers take 14 s and pass. Fits of weighted and of repeated
# samples have to predict the same to 1e-7, which takes a tolerance to match.
# The NumPy backend differs below the estimators: one of each is enough there.
NATIVE = pb.show_config("dict")["backend"] == "native"
CHECKED = (*REGRESSION, *CLASSES) if NATIVE else ("squared_error", "logistic")
SOLVED = {
    "newton-cholesky": {},
    "newton-cg": {"alpha": 0.01, "tol": 1e-10},
    "lbfgs": {"alpha": 0.01, "tol": 1e-10},
}
FITTING = {
    "check_class_weight_classifiers",
    "check_classifiers_classes",
    "check_classifiers_train",
    "check_fit_idempotent",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_non_transformer_estimators_n_iter",
    "check_pipeline_consistency",
    "check_regressors_int",
    "check_regressors_train",
    "check_sample_weight_equivalence_on_dense_data",
    "check_sample_weight_equivalence_on_sparse_data",
}


@pytest.fixture
def checking():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the checks do, such as fits of one iteration
        yield


@pytest.mark.parametrize("loss", CHECKED)
def test_check_estimator(checking, loss):
    results = check_estimator(estimator(loss), on_skip=None)
    assert len(results) > 40
    assert {result["status"] for result in results} <= {"passed", "skipped"}
    skipped = [result["check_name"] for result in results if result["status"] == "skipped"]
    assert skipped in ([], ["check_array_api_input"])


@pytest.mark.parametrize("solver", SOLVED)
@pytest.mark.parametrize("loss", CHECKED)
def test_checks_that_fit(checking, loss, solver):
    model = estimator(loss, solver=solver, **SOLVED[solver])
    checks = {check.func.__name__: check for _, check in estimator_checks_generator(model)}
    chosen = FITTING & checks.keys()
    assert len(chosen) > 7
    for name in sorted(chosen):
        checks[name](clone(model))


# --- other packages' models -----------------------------------------------------------------------

A, N, TIGHT = 0.03, 300, 1e-10
PEERS = [
    ("squared_error", 2 * A / N, Ridge(alpha=A, tol=TIGHT)),
    ("logistic", 1 / (A * N), LogisticRegression(C=A, tol=TIGHT, max_iter=10_000)),
    ("softmax_cross_entropy", 1 / (A * N), LogisticRegression(C=A, tol=TIGHT, max_iter=10_000)),
    ("poisson", A, PoissonRegressor(alpha=A, solver="newton-cholesky", tol=TIGHT)),
    ("gamma", A, GammaRegressor(alpha=A, solver="newton-cholesky", tol=TIGHT)),
    ("tweedie", A, TweedieRegressor(power=1.5, alpha=A, solver="newton-cholesky", tol=TIGHT)),
    (
        "inverse_gaussian",
        A,
        TweedieRegressor(power=3, alpha=A, solver="newton-cholesky", tol=TIGHT),
    ),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("loss", "alpha", "peer"), PEERS, ids=[row[0] for row in PEERS])
def test_peers_coefficients(loss, alpha, peer, weighted):
    X, y = data(loss, N)
    weights = np.random.default_rng(1).integers(0, 4, N).astype(float) if weighted else None
    scale = N / weights.sum() if weighted and alpha != A else 1
    ours = estimator(loss, alpha=alpha * scale, tol=1e-12).fit(X, y, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = peer.fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        ours.score(X, y, weights), theirs.score(X, y, weights), rtol=1e-6, atol=1e-6
    )
    if hasattr(theirs, "predict_proba"):
        for method in ("predict_proba", "decision_function"):
            mine, expected = getattr(ours, method)(X), getattr(theirs, method)(X)
            np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)


def test_huber_at_its_own_scale():
    X, y = data("huber", N)
    X, y[:20] = X - 1, y[:20] + 30
    peer = HuberRegressor(epsilon=1.5, alpha=A, tol=1e-12, max_iter=10_000, warm_start=True)
    for _ in range(5):  # it ends where values no longer change, at half the digits
        peer.fit(X, y)
    ours = LinearRegressor(pb.huber(1.5 * peer.scale_), alpha=A * peer.scale_ / N, tol=1e-12)
    ours.fit(X, y)
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, peer.intercept_, atol=1e-6)


def test_two_classes_are_logistic_with_half_of_alpha():
    X, y = data("logistic")
    softmax = LinearClassifier("softmax_cross_entropy", alpha=0.2, tol=1e-12).fit(X, y)
    theta = pb.LinearObjective(X, y.astype(int), pb.softmax_cross_entropy, l2=0.2)
    both = pb.solvers.newton(theta, tol=1e-12).theta[:8].reshape(4, 2)
    np.testing.assert_allclose(softmax.coef_[0], both[:, 1] - both[:, 0], atol=1e-9)


@pytest.mark.parametrize("loss", REGRESSION)
def test_score_is_the_share_of_the_deviance(loss):
    X, y = data(loss)
    model = LinearRegressor(loss).fit(X, y)
    assert 0 < model.score(X, y) < 1
    best = LOSSES[loss].example(0, 50, 4, np.float64)[1]
    flat = LinearRegressor(loss, alpha=1e6).fit(X, y)
    assert abs(flat.score(X, y)) < 1e-3  # the null model has none
    assert best.size


def test_proportions_are_binomial_counts():
    rng = np.random.default_rng(6)
    X, counts = rng.normal(size=(200, 3)), rng.integers(1, 9, 200)
    successes = rng.binomial(counts, 1 / (1 + np.exp(-X[:, 0])))
    options = {"tol": 1e-12, "alpha": 0.01}
    shares = LinearRegressor("logistic", **options).fit(X, successes / counts, counts)
    twice = np.concatenate([successes, counts - successes])
    trials = LinearClassifier(**options).fit(np.vstack([X, X]), np.repeat([1, 0], 200), twice)
    np.testing.assert_allclose(shares.coef_, trials.coef_[0], rtol=1e-8)
    y = (successes > 0).astype(float)
    null = log_loss(y, np.full(200, y.mean()))
    expected = 1 - log_loss(y, shares.predict(X)) / null
    np.testing.assert_allclose(shares.score(X, y), expected, rtol=1e-9)


def test_score_of_a_loss_without_a_second_derivative():
    X, y = data("squared_error")
    own = pb.pointwise_loss(lambda z, y: (z - y) ** 2, lambda z, y: 2 * (z - y))
    models = (LinearRegressor(loss, tol=1e-10).fit(X, y) for loss in (own, "squared_error"))
    ours, theirs = (model.score(X, y) for model in models)
    assert abs(ours - theirs) < 1e-9


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, np.float32])
def test_a_constant_feature_is_not_scaled_by_what_rounding_makes_of_its_variance(kind):
    X, y = data("logistic")
    X = np.c_[X, np.full(len(X), 0.1)]
    for weights in (None, np.linspace(0.1, 1, len(y))):
        model = LinearClassifier(alpha=0.1, standardize=True).fit(kind(X), y, weights)
        assert abs(model.coef_[0, -1]) < 1e-9


# --- offsets and weights --------------------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_an_exposure_is_an_offset_or_a_weight(fit_intercept):
    X, y = data("poisson")
    exposure = np.random.default_rng(2).uniform(0.5, 9, len(y))
    options = {"tol": 1e-12, "fit_intercept": fit_intercept, "alpha": 0.01}
    scaled = 0.01 / exposure.mean()
    counts = LinearRegressor("poisson", **options).fit(X, y, offset=np.log(exposure))
    rates = LinearRegressor("poisson", **options | {"alpha": scaled})
    rates.fit(X, y / exposure, sample_weight=exposure)
    np.testing.assert_allclose(counts.coef_, rates.coef_, rtol=1e-7)
    expected = exposure * rates.predict(X)
    np.testing.assert_allclose(counts.predict(X, offset=np.log(exposure)), expected, rtol=1e-7)
    score = counts.score(X, y, offset=np.log(exposure))
    assert abs(score - rates.score(X, y / exposure, exposure)) < 1e-7


@pytest.mark.parametrize("n_classes", [2, 3])
def test_offsets_of_classes(n_classes):
    X, y = data("softmax_cross_entropy")
    y %= n_classes
    per_output = np.random.default_rng(2).normal(size=(len(y), n_classes))
    offset = per_output if n_classes > 2 else per_output[:, 0]
    model = LinearClassifier(tol=1e-10).fit(X, y, offset=offset)
    z = model.decision_function(X, offset)
    np.testing.assert_allclose(z - offset, model.decision_function(X), atol=1e-12)
    loss = pb.softmax_cross_entropy if n_classes > 2 else pb.logistic
    objective = pb.LinearObjective(X, y, loss, 1e-4, offset=offset)
    theta = np.concatenate([model.coef_.T.ravel(), model.intercept_])
    assert np.abs(objective.grad(theta)).max() < 1e-9


def test_metadata_are_routed():
    X, y = data("poisson")
    rng = np.random.default_rng(3)
    metadata = {"sample_weight": rng.uniform(1, 2, len(y)), "offset": rng.normal(size=len(y))}
    with sklearn.config_context(enable_metadata_routing=True):
        model = LinearRegressor("poisson").set_fit_request(sample_weight=True, offset=True)
        model.set_score_request(sample_weight=True, offset=True).set_predict_request(offset=True)
        pipeline = make_pipeline(PolynomialFeatures(1), model).fit(X, y, **metadata)
        direct = clone(model).fit(PolynomialFeatures(1).fit_transform(X), y, **metadata)
        np.testing.assert_array_equal(pipeline[-1].coef_, direct.coef_)
        scores = cross_validate(model, X, y, params=metadata, cv=3)["test_score"]
        assert (scores > 0).all()


@pytest.mark.parametrize("loss", ["gamma", "squared_hinge", "softmax_cross_entropy"])
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array, sparse.csc_array])
def test_standardize_is_algebra(loss, make):
    X, y = data(loss)
    X = X * np.array([1e-3, 1, 1e3, 0]) + 7
    weights = np.random.default_rng(4).integers(0, 3, len(y)).astype(float)
    options = {"alpha": 0.1, "tol": 1e-12}
    ours = estimator(loss, standardize=True, **options).fit(make(X), y, weights)
    scaler = StandardScaler().fit(X, sample_weight=weights)
    scaled = estimator(loss, **options).fit(scaler.transform(X), y, weights)
    np.testing.assert_allclose(ours.coef_, scaled.coef_ / scaler.scale_, rtol=1e-6, atol=1e-12)


@pytest.mark.filterwarnings("ignore:LinearClassifier. no convergence")
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(
    "loss", ["logistic", "squared_hinge", "softmax_cross_entropy"][: None if NATIVE else 1]
)
def test_solvers_iterate_on_standardized_features(loss, fit_intercept, make):
    """Of scales from 1e-3 to 1e3, and of means as large where an intercept lets them be centred."""
    X, y = data(loss, 500, 8)
    X = make((X - (not fit_intercept)) * np.geomspace(1e-3, 1e3, 8))
    options = {"alpha": 1e-3, "tol": 1e-8, "fit_intercept": fit_intercept, "max_iter": 200}
    iterations = {}
    for solver in ("lbfgs", "newton-cg"):
        for standardize in (False, True):
            model = estimator(loss, solver=solver, standardize=standardize, **options).fit(X, y)
            iterations[solver, standardize] = model.n_iter_
    assert iterations["lbfgs", True] < 30
    assert iterations["lbfgs", False] > 4 * iterations["lbfgs", True]
    assert iterations["newton-cg", True] < iterations["newton-cg", False]


@pytest.mark.filterwarnings("ignore:LinearRegressor. no convergence")
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("solver", ["auto", *SOLVED])
def test_standardized_features_of_any_scale(solver, make):
    """Also where squares overflow or vanish: nothing warns of it, and results are finite."""
    X, y = data("squared_error", 60, 2)
    for scale, fit_intercept in itertools.product((5e-324, 1e-300, 1e160, 1e300), (True, False)):
        options = {"standardize": True, "fit_intercept": fit_intercept, "solver": solver}
        model = LinearRegressor(alpha=0.1, **options).fit(make(X * scale), y)
        assert np.isfinite([*model.coef_, model.intercept_]).all()


# --- X as it is -----------------------------------------------------------------------------------


def layouts(X):
    return {
        "float32": X.astype(np.float32),
        "float16": X.astype(np.float16),
        "columns": np.asfortranarray(X),
        "csr": sparse.csr_array(X),
        "csc": sparse.csc_array(X),
        "coo": sparse.coo_array(X),
        "frame": pd.DataFrame(X, columns=list("abcd")),
        "list": X.tolist(),
        "integers": np.nan_to_num(X, posinf=0, neginf=0).astype(int),
    }


@pytest.mark.parametrize("name", layouts(np.ones((1, 4))))
def test_layouts(name):
    X, y = data("poisson")
    X = np.round(X)
    expected = LinearRegressor("poisson", tol=1e-12).fit(X, y)
    model = LinearRegressor("poisson", tol=1e-12).fit(layouts(X)[name], y)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-8)
    np.testing.assert_allclose(model.predict(layouts(X)[name]), expected.predict(X), rtol=1e-8)
    assert hasattr(model, "feature_names_in_") == (name == "frame")


MAKE = [np.asarray, pd.DataFrame, sparse.csr_array, sparse.csc_array]


@pytest.mark.parametrize("make", MAKE if NATIVE else MAKE[:1])
def test_nothing_as_large_as_X_is_made(make):
    rng = np.random.default_rng(0)
    X, y = make(rng.normal(size=(50_000, 40))), rng.integers(0, 2, 50_000)
    tracemalloc.start()
    LinearClassifier(solver="lbfgs").fit(X, y).predict_proba(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (0.5 if NATIVE else 1) * 50_000 * 40 * 8


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["float32", "columns", "csr", "csc", "frame"])
def test_an_entry_that_is_not_finite(name, value):
    X, y = data("poisson")
    X[[7, 11, 20], [2, 1, 0]] = value
    bad, weights = layouts(X)[name], np.ones(len(y))
    weights[7] = 0
    feature = r" \(feature 'b'\)" if name == "frame" else ""
    kind = "NaN" if np.isnan(value) else "infinity"
    message = rf"Input X contains {kind}: LinearRegressor.fit: X\[11, 1\]{feature} is {value}"
    with pytest.raises(ValueError, match=message):
        LinearRegressor("poisson").fit(bad, y, weights)
    weights[[11, 20]] = 0  # as if they were not there
    model = LinearRegressor("poisson", tol=1e-12).fit(bad, y, weights)
    rest = layouts(X[weights > 0])[name]
    kept = LinearRegressor("poisson", tol=1e-12).fit(rest, y[weights > 0])
    np.testing.assert_allclose(model.coef_, kept.coef_, rtol=1e-8)
    with pytest.raises(ValueError, match=r"LinearRegressor.predict: X\[7, 2\]"):
        model.predict(bad)


# --- classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", CLASSES)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_labels_of_any_kind(loss, n_classes):
    X, y = data("softmax_cross_entropy")
    y %= n_classes
    labels = np.array(["bird", "cat", "dog"], object)[y]
    model = LinearClassifier(loss, tol=1e-10).fit(X, labels)
    numbers = LinearClassifier(loss, tol=1e-10).fit(X, y)
    assert model.classes_.tolist() == ["bird", "cat", "dog"][:n_classes]
    assert (model.predict(X) == np.array(["bird", "cat", "dog"])[numbers.predict(X)]).all()
    assert model.coef_.shape == (1 if n_classes == 2 else 3, 4)
    z = model.decision_function(X)
    assert z.shape == ((300,) if n_classes == 2 else (300, 3))
    assert hasattr(model, "predict_proba") == (LOSSES[loss].response is not None)
    if hasattr(model, "predict_proba"):
        p = model.predict_proba(X)
        np.testing.assert_allclose(p.sum(axis=1), 1)
        assert (model.classes_[p.argmax(axis=1)] == model.predict(X)).all()
    assert model.score(X, labels) == np.mean(model.predict(X) == labels)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 2.0, 1: 0.5, 2: 1.0}])
def test_class_weights_are_weights_of_samples(class_weight):
    X, y = data("softmax_cross_entropy")
    y[y == 2] = np.where(np.arange((y == 2).sum()) % 3, 0, 2)
    options = {"tol": 1e-12, "alpha": 0.01}
    model = LinearClassifier(class_weight=class_weight, **options).fit(X, y)
    by_class = (
        len(y) / 3 / np.bincount(y)
        if class_weight == "balanced"
        else np.array(list(class_weight.values()))
    )
    same = LinearClassifier(**options).fit(X, y, by_class[y])
    np.testing.assert_allclose(model.coef_, same.coef_, rtol=1e-8)
    peer = LogisticRegression(
        C=1 / (0.01 * by_class[y].sum()), class_weight=class_weight, tol=1e-10, max_iter=1000
    ).fit(X, y)
    np.testing.assert_allclose(model.coef_, peer.coef_, atol=1e-6)


def test_a_class_without_weight_is_no_class():
    X, y = data("softmax_cross_entropy")
    weights = (y != 1).astype(float)
    model = LinearClassifier(tol=1e-12).fit(X, y, weights)
    kept = LinearClassifier(tol=1e-12).fit(X[y != 1], y[y != 1])
    assert model.classes_.tolist() == [0, 2]
    np.testing.assert_allclose(model.coef_, kept.coef_, rtol=1e-8)


# --- ways to go -----------------------------------------------------------------------------------

WAYS = [("poisson", 30, 1e-4), ("huber", 30, 1e-4), ("softmax_cross_entropy", 25, 0.1)]
WAYS += [("logistic", 30, None), ("squared_error", 30, None), ("gamma", 30, -1e-4)]


@pytest.mark.parametrize(("loss", "d", "scale"), WAYS if NATIVE else WAYS[:1])
def test_a_pilot_leads_to_the_same(loss, d, scale):
    """Scales far apart, along the axes or not, or a feature that no sample of the pilot shows."""
    X, y = data(loss, 15_000, d)
    X[:, 1:] = (X[:, 1:] + X[:, :1]) * np.geomspace(1, abs(scale or 1), d - 1)
    if scale is not None and scale < 0:
        X = X @ np.linalg.qr(np.random.default_rng(5).normal(size=(d, d)))[0]
    if scale is None:
        X[:, 3] = np.arange(len(X)) == 17
    y = np.where(y > 0, 1, 0) if loss == "logistic" else y
    auto, newton = (
        estimator(loss, solver=solver, alpha=1e-9, tol=1e-9).fit(X, y)
        for solver in (
            "auto",
            "newton-cholesky" if loss != "softmax_cross_entropy" else "newton-cg",
        )
    )
    scale = np.sqrt(np.mean(np.square(X), axis=0))
    size = np.abs(newton.coef_ * scale).max()
    np.testing.assert_allclose(auto.coef_ * scale, newton.coef_ * scale, atol=1e-5 * size)
    assert auto.n_iter_ < 30
    again = auto.set_params(warm_start=True).fit(X, y)
    assert again.n_iter_ == 0


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_a_pilot_that_sees_hardly_an_event(loss):
    """Its own fit would separate what it has; the passes stay as few."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(60_000, 50))
    mean = np.exp(X[:, 0] - 7)
    y = rng.poisson(mean) if loss == "poisson" else (rng.random(len(X)) < mean).astype(int)
    model = estimator(loss, alpha=1e-6).fit(X, y)
    assert model.n_iter_ < 25


# --- how it goes on -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["poisson", "logistic", "softmax_cross_entropy"])
@pytest.mark.parametrize("solver", ["newton-cholesky", "newton-cg", "lbfgs"])
def test_warm_start(loss, solver):
    X, y = data(loss)
    model = estimator(loss, solver=solver, warm_start=True).fit(X, y)
    first, coefficients = model.n_iter_, model.coef_
    assert first > 1
    model.fit(X, y)
    assert model.n_iter_ == 0
    np.testing.assert_array_equal(model.coef_, coefficients)


def test_too_few_iterations():
    X, y = data("poisson")
    with pytest.warns(ConvergenceWarning, match=r"max_iter=1 .*Increase max_iter") as caught:
        model = LinearRegressor("poisson", max_iter=1).fit(X, y)
    assert model.n_iter_ == 1
    assert caught[0].filename == __file__


def test_separable_classes_without_a_penalty():
    X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), [0, 0, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LinearClassifier(alpha=0).fit(X, y)
    assert model.score(X, y) == 1


def test_collinear_features_without_a_penalty():
    X, y = data("poisson")
    twice = np.hstack([X, X])
    once = LinearRegressor("poisson", alpha=0, tol=1e-10).fit(X, y)
    model = LinearRegressor("poisson", alpha=0, tol=1e-10).fit(twice, y)
    np.testing.assert_allclose(model.predict(twice), once.predict(X), rtol=1e-6)


def test_progress(capsys):
    X, y = data("poisson")
    LinearRegressor("poisson", verbose=True).fit(X, y)
    assert re.search(r"LinearRegressor.*gradient=", capsys.readouterr().err)


def test_the_progress_bar_ends_with_an_error():
    def value(z, y):
        if len(z) == 300 and bars() > before:
            raise ZeroDivisionError
        return (z - y) ** 2

    def bars():
        return len(tqdm._instances)

    X, y = data("squared_error")
    loss, before = pb.pointwise_loss(value, lambda z, y: 2 * (z - y)), bars()
    with pytest.raises(ZeroDivisionError):
        LinearRegressor(loss, verbose=True).fit(X, y)
    assert bars() == before


def test_blas_has_one_thread_meanwhile():
    """And has its own again after the last of the fits that overlap."""

    def blas():
        return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}

    def value(z, y):
        seen.append(blas())
        if len(seen) == 2:
            LinearRegressor().fit(X, y)
            seen.append(blas())
        return (z - y) ** 2

    seen = []
    X, y = data("squared_error")
    with threadpool_limits(2, "blas"):
        outside = blas()
        LinearRegressor(pb.pointwise_loss(value, lambda z, y: 2 * (z - y))).fit(X, y)
        assert blas() == outside
    assert len(seen) > 3
    assert all(threads <= {1} for threads in seen)


@pytest.mark.parametrize("call", range(1, 5))
def test_an_interrupt_does_not_leave_blas_with_one_thread(call, monkeypatch):
    fit = sys.modules[LinearRegressor.__module__]._ONE_BLAS_THREAD
    right, calls, now = fit._set, [], [[2] * len(fit._libraries)]

    def interrupted(numbers):
        calls.append(numbers)
        if len(calls) == call:
            raise KeyboardInterrupt
        now.append(numbers)
        right(numbers)

    with threadpool_limits(2, "blas"):
        monkeypatch.setattr(fit, "_set", interrupted)
        try:
            LinearRegressor().fit(*data("squared_error"))
        except KeyboardInterrupt:
            assert call < 3
        assert now[-1] == fit._before
        assert fit._fits == 0
        assert [library.num_threads for library in fit._libraries] == fit._before


def test_copies():
    X, y = data("huber")
    model = LinearRegressor(pb.huber(2.0)).fit(X, y)
    assert clone(model).loss == pb.huber(2.0)
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.predict(X), model.predict(X))


def test_pipeline_of_frames():
    X, y = data("poisson")
    frame = pd.DataFrame(X, columns=list("abcd"))
    pipeline = make_pipeline(StandardScaler(), LinearRegressor("poisson"))
    pipeline.set_output(transform="pandas").fit(frame, y)
    assert pipeline[-1].feature_names_in_.tolist() == list("abcd")
    assert pipeline.predict(frame).shape == y.shape


# --- losses of the caller's own -------------------------------------------------------------------


def test_a_loss_of_the_callers_own():
    X, y = data("poisson")
    functions = (lambda z, y: np.exp(z) - y * z, lambda z, y: np.exp(z) - y, lambda z, y: np.exp(z))
    expected = LinearRegressor("poisson", tol=1e-10).fit(X, y)
    for given in (functions, functions[:2]):  # without a second derivative, by L-BFGS
        loss = pb.pointwise_loss(*given, response=np.exp, targets=lambda y: y >= 0)
        model = LinearRegressor(loss, tol=1e-8).fit(X, y)
        np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-6)
        np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-5)


# --- what is refused ------------------------------------------------------------------------------

REFUSED = [
    (LinearClassifier("hinge"), r"gradient of hinge jumps.*'squared_hinge'"),
    (LinearRegressor(pb.quantile(0.9)), r"gradient of quantile jumps.*'huber'"),
    (LinearRegressor("least squares"), r"LinearRegressor: loss is 'least squares'; there are squ"),
    (LinearRegressor(pb.tanh), r"LinearRegressor: loss must be a name or a loss, not"),
    (LinearRegressor("squared_hinge"), "loss squared_hinge is not one of its own; there are"),
    (LinearClassifier("poisson"), "loss poisson is not one of its own; there are logistic"),
    (LinearRegressor(solver="sag"), "solver is 'sag', needs to be one of 'auto', 'newton-"),
    (LinearRegressor(alpha=-1), "LinearRegressor: alpha is -1, needs to be finite, not negative"),
    (LinearRegressor(alpha=None), "LinearRegressor: alpha is None, needs"),
    (LinearRegressor(tol=0), "tol is 0, needs to be positive"),
    (LinearRegressor(tol="0"), "tol is '0', needs to be positive"),
    (LinearRegressor(solver=["auto"]), r"solver is \['auto'\], needs to be one of"),
    (LinearRegressor(max_iter=0.5), "max_iter is 0.5, needs a positive integer"),
    (LinearRegressor("gamma"), r"y\[0\] is 0.0, needs to be finite and positive"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=[row[1] for row in REFUSED])
def test_refused(model, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(np.ones((4, 2)), np.array([0, 1, 0, 1]))


NUMBERS = [0.5, 1.0, 2.0]
COLUMNS = {
    "category": (pd.Categorical(list("xyx")), r"'c' \(category\)"),
    "str": (list("xyx"), r"'c' \((str|object)\)"),
    "date": (pd.date_range("2020-01-01", periods=3), r"'c' \(datetime64\[.*\]\)"),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    "model", [LinearRegressor(), LinearClassifier()], ids=["numbers", "classes"]
)
def test_columns_that_are_not_numbers_are_named(model, name):
    column, told = COLUMNS[name]
    X, y = pd.DataFrame({"a": NUMBERS, "c": column}), np.array([0, 1, 0])
    fitted = clone(model).fit(pd.DataFrame({"a": NUMBERS, "c": NUMBERS}), y)
    message = rf"^{type(model).__name__}: argument X has columns that .*: {told}; .*get_dummies"
    for call in (lambda: clone(model).fit(X, y), lambda: fitted.predict(X)):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(TypeError, match=message.replace(type(model).__name__, "LinearObjective")):
        pb.LinearObjective(X, y, pb.squared_error)


@pytest.mark.parametrize("label", ["y", "sample_weight", "offset"])
def test_a_column_that_is_no_numbers_is_named(label):
    column = pd.Series(list("xyx"), dtype="category")
    with pytest.raises(
        TypeError, match=rf"^LinearRegressor: argument {label} has dtype category, "
    ):
        LinearRegressor().fit(np.ones((3, 2)), **{"y": np.arange(3.0), label: column})


def test_objects_that_are_numbers_are_taken():
    X, y = pd.DataFrame({"a": np.array(NUMBERS, object)}), np.arange(3.0)
    expected = LinearRegressor().fit(X.astype(float), y).coef_
    np.testing.assert_array_equal(LinearRegressor().fit(X, y).coef_, expected)


@pytest.mark.parametrize("model", [LinearRegressor(standardize=True), LinearClassifier()])
@pytest.mark.parametrize("hidden", range(3))
def test_masked_arrays_are_refused(model, hidden):
    given = [np.ones((4, 2)), np.array([0, 1, 0, 1]), np.ones(4)]
    given[hidden] = np.ma.masked_array(given[hidden], given[hidden] > 0)
    name = ["X", "y", "sample_weight"][hidden]
    with pytest.raises(TypeError, match=f"{type(model).__name__}: {name} is a masked array"):
        model.fit(*given)


def test_pullback_needs_no_scikit_learn():
    code = """
import sys
sys.modules["sklearn"] = None
import pullback
try:
    import pullback.interop.sklearn
except ImportError as error:
    assert "pip install 'pullback[sklearn]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "sklearn" in sklearn.__name__
