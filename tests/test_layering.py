"""What the source may do, read from its syntax trees: who imports whom, no hidden randomness, nothing executed."""

import ast
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("entropy_theory", "sims", "llm", "paper_figs")
LONGEST_FILE = 400

# A module of the core imports only from layers above its own line, or from its own folder.
CORE_LAYERS = (
    {
        "softmax",
        "covariances",
        "draw",
        "fit",
        "runs",
        "ranges",
        "remainder_tables",
        "balls",
        "tables",
        "statistics",
        "names",
        "top_k",
        "compiled",
    },
    {"reduce", "records", "remainder", "certify_constants", "lyapunov", "sweeps"},
    {"surrogate", "aggregation"},
    {"loss", "theorems", "advantage", "certify", "lemma_1_batch", "enclosure"},
    {"control", "measure", "kernel", "drift"},
    {"controller", "decomposition", "scope"},
    {"controls"},
    {"claims"},
    {"conformance"},
    {"cli"},
    {"pytest_plugin"},
)
RANK = {name: rank for rank, layer in enumerate(CORE_LAYERS) for name in layer}

HOSTS = {"trl", "verl", "skyrl_train", "slime"}  # other people's trainers: imported only when an adapter is used


def sources() -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module of the packages that exist."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(), str(path))
    return found


SOURCES = sources()
PARENT: dict[ast.AST, ast.AST] = {
    child: parent for tree in SOURCES.values() for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)
}


def ancestors(node):
    """Parents of a node, innermost first."""
    while node in PARENT:
        node = PARENT[node]
        yield node


def imports(module: str):
    """(imported module, whether inside a function, line) of every import; submodules named by `from a import b`."""
    for node in ast.walk(SOURCES[module]):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            names = [f"{node.module}.{a.name}" for a in node.names]
            names = [name if name in SOURCES else node.module for name in names]
        lazy = any(isinstance(a, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) for a in ancestors(node))
        for name in names:
            yield name, lazy, node.lineno


def top(name: str) -> str:
    return name.split(".")[0]


def dotted(node: ast.AST) -> str:
    """a.b.c for an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def calls(module: str):
    """(name as written, call) of every call."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def complaints(check) -> list[str]:
    return [f"{module}:{line} {what}" for module in SOURCES for line, what in check(module)]


# --- who imports whom ---------------------------------------------------------------------------------------------


def core_part(name: str) -> str | None:
    """`controls` for entropy_theory.controls.kl_cov; None outside the core and for its root."""
    parts = name.split(".")
    return parts[1] if parts[0] == "entropy_theory" and len(parts) > 1 else None


def test_every_core_module_has_a_layer():
    unknown = sorted({part for name in SOURCES if (part := core_part(name)) and part not in RANK})
    assert not unknown, f"give these modules a layer in CORE_LAYERS of tests/test_layering.py: {unknown}"


def core_violations(module):
    own = core_part(module)
    for name, lazy, line in imports(module):
        part = core_part(name)
        if own and part and part != own and RANK[part] >= RANK[own]:
            yield line, f"imports {name}, which is not below it"
        if (
            top(module) == "entropy_theory"
            and top(name) in ("sims", "llm", "paper_figs")
            and not (own == "cli" and lazy)
        ):
            yield line, f"imports {name}; only functions of entropy_theory.cli may"


def test_the_core_imports_downwards_only():
    assert complaints(core_violations) == []


def world_violations(module):
    package = top(module)
    for name, lazy, line in imports(module):
        if {package, top(name)} == {"sims", "llm"}:
            yield line, f"imports {name}; the worlds do not know each other"
        if package in ("sims", "llm") and (top(name) == "paper_figs" or name.startswith("entropy_theory.cli")):
            yield line, f"imports {name}; worlds know only the core"
        if package == "paper_figs" and top(name) in ("torch", "sims", "llm", "entropy_theory", "transformers"):
            yield line, f"imports {name}; figures are functions of stored data"
        if top(name) in HOSTS and not lazy:
            yield line, f"imports {name} before it is asked for"


def test_worlds_figures_and_adapters_keep_apart():
    assert complaints(world_violations) == []


def test_no_cycles():
    graph = {m: {n for n, lazy, _ in imports(m) if n in SOURCES and n != m and not lazy} for m in SOURCES}
    settled: set[str] = set()
    while ready := {m for m in graph if m not in settled and graph[m] <= settled}:
        settled |= ready
    assert sorted(set(graph) - settled) == []


def test_importing_the_package_and_its_command_line_loads_nothing_heavy():
    """So that --help answers at once."""
    heavy = ("torch", "numpy", "scipy", "matplotlib", "transformers", "gymnasium", "sims", "llm", "paper_figs")
    code = f"import sys, entropy_theory, entropy_theory.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_package_root_exists():
    import entropy_theory

    for name in entropy_theory.__all__:
        assert getattr(entropy_theory, name) is not None
        # a module of that name would take the place of the function as soon as it is imported
        assert name not in RANK, f"entropy_theory.{name} is a function and entropy_theory/{name} a module"
    assert set(dir(entropy_theory)) == set(entropy_theory.__all__)
    with pytest.raises(AttributeError, match="no attribute 'entropi'"):
        _ = entropy_theory.entropi


# --- randomness is a function of a seed ----------------------------------------------------------------------------

GLOBAL_SEEDS = ("manual_seed", "manual_seed_all", "seed", "set_rng_state", "default_generator")
NEEDS_GENERATOR = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "poisson"}
IN_PLACE = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_", "geometric_", "log_normal_"}
NO_GENERATOR = {"rand_like", "randn_like", "randint_like", "dropout"}
NUMPY_SEEDED = {"Generator", "SeedSequence", "PCG64", "Philox", "BitGenerator"}


def forked(node) -> bool:
    """Whether the call stands in `with torch.random.fork_rng(...)`, which puts the global generator back."""
    withs = [a for a in ancestors(node) if isinstance(a, ast.With)]
    return any(
        dotted(getattr(item.context_expr, "func", ast.Pass())).endswith("fork_rng") for w in withs for item in w.items
    )


def own_generator(module) -> set[int]:
    """Lines of `from random import Random`, whose instances hold their own state."""
    nodes = (node for node in ast.walk(SOURCES[module]) if isinstance(node, ast.ImportFrom))
    return {node.lineno for node in nodes if node.module == "random" and [a.name for a in node.names] == ["Random"]}


def random_violations(module):
    for name, _, line in imports(module):
        if name in ("random", "torch.distributions", "secrets") and line not in own_generator(module):
            yield line, f"imports {name}, which draws from a global generator"
    for name, call in calls(module):
        head, _, last = name.rpartition(".")
        keywords = {k.arg for k in call.keywords}
        attribute = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if (head in ("torch", "torch.cuda", "torch.random") and last in GLOBAL_SEEDS) and not forked(call):
            yield call.lineno, f"{name} sets the global generator"
        if last in NEEDS_GENERATOR and head == "torch" and "generator" not in keywords:
            yield call.lineno, f"{name} without generator="
        if head != "torch" and attribute in ("multinomial", "bernoulli") and "generator" not in keywords:
            yield call.lineno, f".{attribute} without generator="
        if attribute in IN_PLACE and "generator" not in keywords:
            yield call.lineno, f".{attribute} without generator="
        if attribute in NO_GENERATOR:
            yield call.lineno, f".{attribute} cannot take a generator"
        if name in ("Random", "random.Random") and not call.args:
            yield call.lineno, "Random() without a seed"
        if head in ("np.random", "numpy.random"):
            seeded = last == "default_rng" and (call.args or call.keywords)
            if not seeded and last not in NUMPY_SEEDED:
                yield call.lineno, f"{name} draws from, or makes, an unseeded generator"


def test_no_global_randomness():
    assert complaints(random_violations) == []


# --- nothing that is read is executed -------------------------------------------------------------------------------

EXECUTING_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code"}


def execution_violations(module):
    for name, _, line in imports(module):
        if top(name) in EXECUTING_MODULES:
            yield line, f"imports {name}"
    for name, call in calls(module):
        keywords = {k.arg: k.value for k in call.keywords}

        def is_true(keyword, keywords=keywords):
            value = keywords.get(keyword)
            return isinstance(value, ast.Constant) and value.value is True

        if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            yield call.lineno, f"calls {name}"
        if name.endswith("torch.load") and not is_true("weights_only"):
            yield call.lineno, "torch.load without weights_only=True"
        for keyword in ("allow_pickle", "trust_remote_code", "shell"):
            if keyword in keywords and not (
                isinstance(keywords[keyword], ast.Constant) and not keywords[keyword].value
            ):
                yield call.lineno, f"{keyword} is not False"


def test_nothing_read_is_executed():
    assert complaints(execution_violations) == []


# --- readable -------------------------------------------------------------------------------------------------------


def docstring_violations(module):
    tree = SOURCES[module]
    if tree.body and not ast.get_docstring(tree):
        yield 1, "module without a docstring"
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        inner = any(isinstance(a, ast.FunctionDef | ast.AsyncFunctionDef) for a in ancestors(node))
        hidden = any(isinstance(a, ast.ClassDef) and a.name.startswith("_") for a in ancestors(node))
        if not inner and not hidden and not ast.get_docstring(node):
            yield node.lineno, f"{node.name} has no docstring"


def test_everything_public_has_a_docstring():
    assert complaints(docstring_violations) == []


def test_files_are_short():
    folders = [*PACKAGES, "benchmarks"]
    lengths = {p: len(p.read_text().splitlines()) for f in folders for p in (ROOT / f).rglob("*.py")}
    assert [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > LONGEST_FILE] == []


# --- the checks themselves can fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "check"),
    [
        ("entropy_theory.softmax", "from entropy_theory.loss import token_loss", core_violations),
        ("entropy_theory.controls.x", "from entropy_theory.claims import check", core_violations),
        ("entropy_theory.loss", "def f():\n    import sims", core_violations),
        ("entropy_theory.cli", "import llm", core_violations),
        ("sims.x", "def f():\n    from llm import grpo", world_violations),
        ("paper_figs.x", "import torch", world_violations),
        ("llm.adapters.x", "import trl", world_violations),
        ("sims.x", "import torch\ntorch.manual_seed(0)", random_violations),
        ("sims.x", "import torch\ntorch.randperm(3)", random_violations),
        ("sims.x", "p.multinomial(1)", random_violations),
        ("sims.x", "w.normal_()", random_violations),
        ("sims.x", "import numpy as np\nnp.random.default_rng()", random_violations),
        ("sims.x", "import numpy as np\nnp.random.shuffle(x)", random_violations),
        ("sims.x", "import random", random_violations),
        ("sims.x", "from random import Random, shuffle", random_violations),
        ("sims.x", "from random import Random\nRandom()", random_violations),
        ("llm.x", "eval(answer)", execution_violations),
        ("llm.x", "import torch\ntorch.load(p)", execution_violations),
        ("llm.x", "import torch\ntorch.load(p, weights_only=False)", execution_violations),
        ("llm.x", "load(p, trust_remote_code=True)", execution_violations),
        ("sims.x", '"""Doc."""\ndef f():\n    pass', docstring_violations),
    ],
)
def test_each_check_catches_its_fault(name, source, check, monkeypatch):
    tree = ast.parse(source)
    monkeypatch.setitem(SOURCES, name, tree)
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            monkeypatch.setitem(PARENT, child, parent)
    assert list(check(name)) != []


# --- tests run offline ----------------------------------------------------------------------------------------------


def test_the_network_is_refused_and_remembered(offline):
    with pytest.raises(ConnectionRefusedError, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # an address reserved for documentation
    with pytest.raises(ConnectionRefusedError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 80)
    assert len(offline) >= 2
    offline.clear()


def test_this_machine_may_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        server.accept()[0].close()
        assert client.recv(1) == b""
