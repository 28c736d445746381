"""A pytest plug-in: `pytest --entropy-theory-model DIR` checks the theory on a language model's own logits.

Each model adds six tests: Lemma 1, Proposition 1, Theorems 1-2, and its entropies in float32 and from bfloat16
logits against float64. The fixture `entropy_theory_check` does the same for logits made in a test. Without the
option and the fixture this module does nothing and imports neither torch nor NumPy.
"""

import warnings
from pathlib import Path

import pytest

STATEMENTS = ("lemma_1", "proposition_1", "theorem_1", "theorem_2")
"""The ids of `claims.STATEMENTS`, so that collecting needs no torch."""
PRECISIONS = ("float32", "bfloat16")


def pytest_addoption(parser):
    """--entropy-theory-model, --entropy-theory-seed."""
    group = parser.getgroup("entropy-theory")
    group.addoption(
        "--entropy-theory-model",
        metavar="DIR",
        action="append",
        default=[],
        help="check the entropy theory on the logits of the causal language model in DIR (config.json and "
        "*.safetensors); may be given several times",
    )
    group.addoption(
        "--entropy-theory-seed", metavar="N", type=int, default=0, help="seed of the changes and advantages"
    )


def pytest_configure(config):
    """One sentence for a directory that does not exist, before anything is collected."""
    for directory in config.getoption("entropy_theory_model"):
        if not Path(directory).is_dir():
            raise pytest.UsageError(f"--entropy-theory-model: there is no directory {directory!r}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Add the tests of each model to what the session finds, so that they are counted and chosen like any others."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        for directory in collector.config.getoption("entropy_theory_model"):
            node = f"entropy-theory[{directory}]"
            report.result.append(Model.from_parent(collector, name=node, nodeid=node, directory=directory))
    return report


class Model(pytest.Collector):
    """The tests of one model directory, which is read when the first of them runs."""

    def __init__(self, directory: str, **arguments):
        super().__init__(**arguments)
        self.directory = directory
        self.seed = self.config.getoption("entropy_theory_seed")
        self._outcome = None

    def collect(self):
        """One test for each statement and precision."""
        for id in STATEMENTS:
            yield Check.from_parent(self, name=id, run=self.statement)
        for dtype in PRECISIONS:
            yield Check.from_parent(self, name=f"entropy_{dtype}", run=self.precision)

    def states(self):
        """The model's states; a model that cannot be read is tried once only."""
        if self._outcome is None:
            try:
                self._outcome = self._read()
            except ValueError as error:
                self._outcome = error
        if isinstance(self._outcome, ValueError):
            raise self._outcome
        return self._outcome

    def _read(self):
        from entropy_theory.cli.worlds import lend_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that load the model; they are not under test
            return lend_model(Path(self.directory)).states()

    def statement(self, id: str) -> None:
        """One of `claims.STATEMENTS` on the model's states."""
        from entropy_theory.conformance.states import check_statement

        check_statement(id, self.states(), self.seed, self.directory)

    def precision(self, name: str) -> None:
        """The model's entropies with its logits in one dtype."""
        import torch

        from entropy_theory.conformance.states import check_precision

        dtype = getattr(torch, name.removeprefix("entropy_"))
        check_precision(self.states().logits, dtype, self.directory)


class Check(pytest.Item):
    """One test of a model; `run` is called with its name."""

    def __init__(self, run, **arguments):
        super().__init__(**arguments)
        self.run = run

    def runtest(self):
        """Run it."""
        self.run(self.name)

    def reportinfo(self):
        """Where the failure is shown to come from."""
        return self.parent.directory, None, f"{self.parent.name} {self.name}"

    def repr_failure(self, excinfo, style=None):
        """The sentence and the snippet, without the plug-in's own traceback."""
        if excinfo.errisinstance((AssertionError, ValueError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)


@pytest.fixture(scope="session")
def entropy_theory_check():
    """A function of logits that fails where entropy theory fails on them.

    entropy_theory_check(logits, change=None, advantage=None, entropy=None, seed=0)

    logits, change, advantage: [..., actions], torch, NumPy or lists; entropy: [...], computed by your own code.
    Raises AssertionError with the smallest failing instance as code to paste.
    """
    from entropy_theory.conformance.states import check_logits

    return check_logits
