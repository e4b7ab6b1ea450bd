"""Wrong invocations and configurations, and what the one message about each must contain.

All of these are decided before MPI starts, or in a simulation, and so run in one process; what
takes ranks is in test_on_ranks.py.
"""

from __future__ import annotations

import gzip
import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One thing done wrong.

    Attributes
    ----------
    args : str
        Of ``mpimomentum``, divided at blanks.
    words : tuple of str
        The value that is wrong and the remedy: all must be in the message.
    files : dict
        Name → text or bytes of files in the working directory.
    env : dict
        Further variables.
    code : int
        Exit code.
    leaves : frozenset of str
        What may be there afterwards and was not before.
    """

    args: str
    words: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    code: int = 2
    leaves: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return " ".join([*(f"{k}={v}" for k, v in self.env.items()), self.args])


def toml(text: str | bytes, *words: str, command: str = "train") -> Row:
    return Row(f"{command} run.toml", ("run.toml", *words), {"run.toml": text})


def env(variable: str, text: str, *words: str, command: str = "train") -> Row:
    return Row(command, (f"{variable}={text}" if text else variable, *words), env={variable: text})


def npy(array: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def matrix(W: Any, *words: str, workers: int = 3, more: str = "") -> Row:
    args = f"simulate --topology w.npy --workers {workers} --model mlp {more}".strip()
    return Row(args, ("w.npy", *words), {"w.npy": npy(np.array(W, dtype=float))})


def simulate(args: str, *words: str) -> Row:
    return Row(f"simulate --model mlp {args}", words)


THIRD = [[1 / 3] * 3] * 3
PULLS = [[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0.5, 0]]
PUSHES = [list(column) for column in zip(*PULLS, strict=True)]
SUMS = "--algorithm async-server --mode sums"
SIGNUM = "train --algorithm signum"
PAIRED = "--algorithm ad-psgd --variant paired"
IDX = "train-images-idx3-ubyte"
DIGITS = gzip.compress(b"0," * 64 + b"7\n")

NAMES = [
    Row("trian", ("trian", "train")),
    Row("list ad-psg", ("'ad-psg'", "did you mean ad-psgd")),
    Row("list models data", ("data", "--help")),
    Row("list --memory inf", ("--memory", "inf", "<= 1")),
    Row("train --algoritm x", ("--algoritm", "did you mean --algorithm")),
    Row("train --workers 3", ("--workers", "flag of mpimomentum simulate")),
    simulate("--algorithm adpsgd", "'adpsgd'", "did you mean 'ad-psgd'"),
    simulate("--mu auto --algorithm allreduce-sgd", "mu='auto'", "choose async-server or ad-psgd"),
    simulate("--mu auto --algorithm signum", "mu='auto'", "signum has no such parameter"),
    simulate("--mu automatic", "--mu automatic", "a number is needed, or choose one of auto"),
    simulate("--mu-max 0.5", "mu_max=0.5", "choose mu='auto'"),
    simulate("--mu auto --mu-max 1", "mu_max=1.0", "[0, 1)"),
    simulate("--auto-lr --mu 0.5", "auto_lr=True", "choose mu='auto'"),
    simulate(
        "--algorithm async-server --mu auto --weighting exponential --weight-momentum",
        "weighting='exponential'",
        "leave weighting out, or give mu a number",
    ),
    simulate("--algorithm async-server --mu auto --quorum 2", "quorum=2", "leave quorum out"),
    simulate("--algorithm async-server --mu auto --mode sums", "mode='sums'", "use mode='server'"),
    simulate("--algorithm sgd", "'sgd'", "There are", "allreduce-sgd"),
    simulate("--topology rign", "'rign'", "did you mean 'ring'"),
    Row("simulate --model cnn-smal", ("'cnn-smal'", "did you mean 'cnn-small'")),
    simulate("--data digit", "'digit'", "did you mean 'digits'"),
    Row("train --partition labels", ("--partition labels", "did you mean label", "iid")),
    Row("train --device gpu", ("device=gpu", "choose auto, cpu, cuda")),
    Row("train --staging fast", ("--staging fast", "pinned")),
    simulate("--record --algorithm async-server --mode sums", "mode='sums'", "use mode='server'"),
    simulate("--record --non-finite skip", "non_finite='skip'", "use non_finite='abort'"),
    simulate(
        "--record --timing-only", "timing_only=True", "simulate without it", "leave record out"
    ),
    Row("train --record --out a --resume auto", ("resume='auto'", "begins at the beginning")),
    Row("train --record --device cuda:1", ("device='cuda'", "use device='cpu'")),
    Row(
        "train --record --on-failure continue", ("on_failure='continue'", "use on_failure='abort'")
    ),
    Row("simulate --replay nowhere", ("replay=nowhere", "no recorded run", "train --record")),
    Row("simulate --replay a --lr 0.1", ("lr=0.1", "as it was recorded", "leave lr out")),
    Row("simulate --replay a --out b", ("out=b", "a replay writes nothing")),
    Row("simulate --show 3..5", ("show=3..5", "without replay")),
    Row("simulate --replay a --show 5..3", ("show='5..3'", "10..20")),
    Row("simulate --replay a --show five", ("show='five'", "10..20")),
    Row("simulate --until 3", ("until=3", "without replay")),
    Row("simulate --replay a --until -1", ("until=-1", "from 0")),
    simulate("--staging ipc", "staging=ipc", "a simulation", "leave staging out"),
    Row("train --amp fp16", ("--amp fp16", "bf16")),
    simulate("--device cuda", "device=cuda", "a simulation", "leave device out"),
    Row("train", ("device=cuda:x", "choose auto, cpu, cuda"), env={"MPIMOMENTUM_DEVICE": "cuda:x"}),
    Row("train --progress loud", ("--progress loud", "lines")),
    Row("train --non-finite maybe", ("--non-finite maybe", "skip")),
    Row(
        "simulate --algorithm katyusha-x --non-finite skip",
        ("non_finite=skip", "katyusha-x", "use abort or ignore"),
    ),
    Row("train --variant pared", ("variant='pared'", "'paired'")),
    Row("train --algorithm d-psgd --mu 0.5", ("mu=0.5", "no such parameter", "leave mu out")),
    Row("train --servers 2", ("servers=2", "ad-psgd has no such parameter")),
    Row("train --wire int8", ("wire='int8'", "variant='lockfree'", "use variant='paired'")),
    Row("train --algorithm d-psgd --wire fp8", ("wire='fp8'", "'int8'")),
    Row("train --algorithm d-psgd --wire sign", ("wire='sign'", "use 'int8'")),
    Row(
        "train --algorithm slowmo --wire bf16",
        ("wire='bf16'", "slowmo has no such parameter", "leave wire out", "d-psgd"),
    ),
    simulate("--algorithm async-server --mode sums --wire sign", "wire='sign'", "mode='server'"),
    simulate("--algorithm async-server --mu auto --wire sign", "wire='sign'", "wire='int8'"),
    simulate(
        "--algorithm d-psgd --wire bf16 --topology one-peer-exponential --workers 4",
        "one-peer-exponential",
        "wire='bf16'",
        "use a static topology such as ring",
    ),
    Row(
        "train --algorithm d-psgd --wire int8 --on-failure continue",
        ("on_failure=continue", "wire='int8'", "use wire='float32'"),
    ),
    toml("mu = true", "mu = true", "a number is needed, or choose one of auto"),
    toml("lerning_rate = 1\n", "line 1", "unknown key lerning_rate", "Keys are"),
    toml("seed = 1\nalgoritm = 'x'\n", "line 2", "algoritm", "did you mean algorithm"),
    toml("batch-size = 8\n", "batch-size", "did you mean batch_size"),
    toml("workers = 3\n", "workers", "key of mpimomentum simulate"),
    toml("[algorithm]\nlr = 1\n", "[algorithm] is a table", "lr = 0.1"),
    env("MPIMOMENTUM_TOPOLGY", "ring", "did you mean MPIMOMENTUM_TOPOLOGY"),
    env("MPIMOMENTUM_DRIVR", "inline", "did you mean MPIMOMENTUM_DRIVER", command="simulate"),
]

SYNTAX = [
    Row("train a.toml b.toml", ("'b.toml'", "one TOML file"), {"a.toml": "", "b.toml": ""}),
    Row("train --lr 1 --lr 2", ("--lr", "give it once")),
    Row("train --lr", ("--lr", "needs a value", "--help")),
    Row("train nowhere.toml", ("nowhere.toml", "No such file", "flags only")),
    Row("train folder", ("folder", "Is a directory", "give one"), {"folder/x": ""}),
    Row("train --reweight maybe", ("maybe", "No such file", "TOML file")),
    toml(b"lr = 0.1 # \xff\n", "byte 11", "save the file as UTF-8"),
    toml("seed = 1\nlr = \n", "line 2", "a line reads lr = 0.1"),
    toml("lr = 1\nlr = 2\n", "line 2", "not TOML"),
    toml('model = "mlp\n', "line 1", "not TOML"),
    toml("just words\n", "line 1", 'model = "mlp"'),
]

TYPES = [
    Row("train --lr fast", ("--lr fast", "a number is needed")),
    Row("train --steps 1.5", ("--steps 1.5", "a whole number")),
    Row("train --seed 1e3", ("--seed 1e3", "a whole number")),
    Row("simulate --workers two", ("--workers two", "a whole number")),
    toml('lr = "0.1"\n', 'lr = "0.1"', "a number is needed"),
    toml("lr = true\n", "lr = true", "a number is needed"),
    toml("lr = [0.1, 0.2]\n", "lr = [0.1, 0.2]", "a number is needed"),
    toml("lr = 1979-05-27\n", "lr = 1979-05-27", "a number is needed"),
    toml("steps = 2.5\n", "steps = 2.5", "a whole number"),
    toml('seed = 1\n\nsteps = "3"\n', "line 3", 'steps = "3"', "a whole number"),
    toml('reweight = "yes"\n', 'reweight = "yes"', "true or false"),
    toml("model = 3\n", "model = 3", "text is needed, in quotes"),
    toml("out = 3\n", "out = 3", "a path is needed, in quotes"),
    toml('partition = "labels"\n', "did you mean label"),
    env("MPIMOMENTUM_LR", "abc", "a number is needed"),
    env("MPIMOMENTUM_STEPS", "1.5", "a whole number"),
    env("MPIMOMENTUM_REWEIGHT", "maybe", "true or false"),
    env("MPIMOMENTUM_LR", "", "unset it"),
]

MEASURED = """format = 1
made_by = "mpimomentum 0.1.0"
mpi = "Open MPI"
date = "2026-01-01"
ranks = 2
nodes = 1
cores = 2
[step]
gradient_s = 0.01
update_s = 0.001
update_s_per_parameter = 1e-9
parameters = 6090
batch_size = 16
model = "cnn-small"
data = "digits"
[node]
latency_s = 1e-4
bandwidth_Bps = 1e9
"""


def calibrated(text: str, *words: str, more: str = "") -> Row:
    return Row(f"simulate --from c.toml {more}".strip(), ("c.toml", *words),
               {"c.toml": text})  # fmt: skip


CALIBRATIONS = [
    Row("calibrate", ("one process", "mpirun -n 2")),
    Row("calibrate --parameters 10", ("--parameters", "1024")),
    Row("simulate --from nowhere.toml", ("nowhere.toml", "No such file", "anew")),
    calibrated(MEASURED[:-9], "not TOML", "make it anew"),
    calibrated("x = 1\n", "format = None", "reads 1", "make it anew"),
    calibrated(MEASURED.replace("format = 1", "format = 2"), "format = 2", "reads 1"),
    calibrated(MEASURED.replace("latency_s = 1e-4\n", ""), "node.latency_s is missing"),
    calibrated(MEASURED.replace("1e-4", "-1e-4"), "node.latency_s = -0.0001", "negative"),
    calibrated(MEASURED.replace("1e9", '"fast"'), "node.bandwidth_Bps = 'fast' is not float"),
    calibrated(MEASURED.replace("1e9", "0"), "bandwidths must be above 0", "anew"),
    calibrated(MEASURED.replace("ranks = 2", "ranks = 0"), "ranks = 0", "at least 1"),
    calibrated(MEASURED.replace("[node]", "[machine]"), "machine is not known", "anew"),
    calibrated(MEASURED[: MEASURED.index("[node]")], "node is missing", "anew"),
    calibrated(MEASURED + "[costs.gossip]\nlatency = 1\n", "costs.gossip", "no such operation"),
    calibrated(MEASURED + "[costs.average]\nlatency = 0\nnbytes = 1\n", "latency=0", "above 0"),
    calibrated(MEASURED + "speed = 3\n", "node.speed is not known", "anew"),
    Row("simulate --from c.toml --gpus-per-node 2", ("between nodes", "--latency-s"),
        {"c.toml": MEASURED}),
    Row("simulate --from c.toml --model mlp", ("cnn-small", "mlp", "--compute-s"),
        {"c.toml": MEASURED}),
    Row("simulate --from c.toml --batch-size 8", ("16 samples", "8 samples", "--compute-s"),
        {"c.toml": MEASURED}),
]  # fmt: skip

RANGES = [
    Row("train --lr nan", ("lr=nan", "finite")),
    Row("train --lr inf", ("lr=inf", "finite")),
    Row("train --lr -1", ("lr=-1.0", "not negative")),
    Row("train --mu 1", ("mu=1.0", "[0, 1)")),
    Row("train --mu -0.1", ("mu=-0.1", "[0, 1)")),
    Row("train --mu nan", ("mu=nan", "[0, 1)")),
    Row("train --batch-size 0", ("batch_size=0", "at least 1")),
    simulate("--batch-size 500", "batch_size=500", "359 samples", "smaller batch_size"),
    simulate("--workers 2000", "2000", "use at most 1437 ranks"),
    Row("train --epochs 0", ("epochs=0", "above 0")),
    Row("train --epochs inf", ("epochs=inf", "finite")),
    Row("train --steps -1", ("steps=-1", "not be negative")),
    Row("train --duration-s 0", ("duration_s=0", "positive")),
    Row("train --duration-s nan", ("duration_s=nan", "finite")),
    Row("train --steps 1 --epochs 1", ("steps=1", "epochs=1", "only one")),
    Row("train a.toml", ("steps=1", "duration_s=3", "one of"), {"a.toml": "steps=1\nduration_s=3"}),
    Row("train --seed -1", ("seed=-1", "not be negative")),
    simulate(f"--seed {2**63}", f"seed={2**63}", "below 2^63"),
    Row("train --log-every 0", ("log_every=0", "at least 1 step")),
    env("MPIMOMENTUM_LOG_LEVEL", "loud", "warning"),
    Row("simulate --workers 0", ("workers=0", "at least 1")),
    Row("train --algorithm async-server --servers 0", ("servers=0", "at least one rank")),
    simulate("--algorithm async-server --servers 5", "servers=5", "start more ranks"),
    simulate("--algorithm async-server --servers 4 --dedicated", "servers=4", "start more ranks"),
    Row(f"{SIGNUM} --beta 1", ("beta=1.0", "[0, 1)")),
    Row(f"{SIGNUM} --scale layers --error-feedback", ("scale='layers'", "'layer'")),
    Row(f"{SIGNUM} --scale layer", ("scale='layer'", "set error_feedback too")),
    Row(f"{SIGNUM} --adversaries 2:lie", ("'2:lie'", "RANK:BEHAVIOUR", "invert and random")),
    Row(f"{SIGNUM} --adversaries 2", ("'2'", "RANK:BEHAVIOUR")),
    Row(f"{SIGNUM} --adversaries 1:invert,1:random", ("rank 1 twice", "name it once")),
    Row(
        f"{SIGNUM} --error-feedback --adversaries 1:invert",
        (
            "'1:invert'",
            "leave one of the two out",
        ),
    ),
    simulate("--algorithm local-momentum --local-steps 0", "local_steps=0", "from 1 up"),
    simulate("--algorithm ad-psgd --local-steps 0", "local_steps=0", "from 1 up"),
    simulate("--algorithm d-psgd --local-steps 2", "local_steps=2", "d-psgd has no such"),
    simulate("--algorithm decentralized-momentum --mu 1", "mu=1.0", "[0, 1)"),
    simulate("--algorithm quasi-global-momentum --mu 1", "mu=1.0", "[0, 1)"),
    simulate("--algorithm slowmo --buffers zero", "buffers='zero'", "'reset', 'keep'"),
    simulate("--algorithm slowmo --slow-mu 1", "slow_mu=1.0", "[0, 1)"),
    simulate("--algorithm slowmo --slow-lr inf", "slow_lr=inf", "finite"),
    simulate("--algorithm slowmo --local-steps 0", "local_steps=0", "from 1 up"),
    simulate("--algorithm d-psgd --slow-mu 0.5", "d-psgd has no such", "leave slow_mu out"),
    simulate("--algorithm elastic-averaging --beta 1", "beta=1.0", "(0, 1)"),
    simulate("--algorithm elastic-averaging --local-steps 0", "local_steps=0", "from 1 up"),
    simulate("--algorithm sgp --variant lockfree", "variant='lockfree'", "'atc', 'cta'"),
    matrix(PULLS, "column stochastic", "sums to 1.5", "transpose", more="--algorithm sgp"),
    matrix(PUSHES, "doubly stochastic", "sums to 1.5", more="--algorithm quasi-global-momentum"),
    simulate("--algorithm d2", "smallest is -0.333333", "--lazy"),
    simulate("--algorithm d2 --topology random-matching", "the same W at every step", "--lazy"),
    simulate("--algorithm d2 --topology exponential --workers 8", "symmetric W", "undirected"),
    simulate("--algorithm katyusha-x --inner-steps 0", "inner_steps=0", "from 1 up"),
    simulate("--algorithm katyusha-x --mu 0.5", "mu=0.5", "it has lr, inner_steps, sigma, prox;"),
    simulate("--algorithm katyusha-x --sigma 1", "sigma=1.0", "at most", "0.0666667", "fewer"),
    simulate("--algorithm katyusha-x --sigma -1", "sigma=-1.0", "not negative"),
    simulate("--algorithm katyusha-x --prox l1", "prox='l1'", "l1:0.001"),
    simulate("--algorithm katyusha-x --prox l3:1", "prox='l3:1'", "l2:WEIGHT"),
    simulate("--algorithm katyusha-x --batch 4", "--batch", "did you mean --batch-size"),
    simulate("--algorithm katyusha-x --augment", "augment=True", "leave augment out"),
    Row(
        "train --algorithm katyusha-x --model resnet20",
        ("BatchNorm2d (1), what a sample adds", "without it"),
    ),
    simulate("--algorithm async-server --weighting linear", "weighting='linear'", "'inverse'"),
    simulate("--algorithm async-server --weight-momentum", "choose a weighting", "no weight"),
    simulate("--algorithm async-server --decay 2", "decay=2.0", "exponential"),
    simulate("--algorithm async-server --weighting inverse --decay -1", "decay=-1.0", "negative"),
    simulate("--algorithm async-server --quorum 0", "quorum=0", "from 1 up"),
    simulate("--algorithm async-server --quorum 5", "quorum=5", "4 workers", "start more ranks"),
    simulate("--algorithm async-server --quorum 4 --dedicated", "quorum=4", "use 3 or less"),
    simulate("--algorithm async-server --quorum 1.5", "--quorum 1.5", "a whole number"),
    simulate("--algorithm async-server --mode serve", "mode='serve'", "'server', 'sums'"),
    simulate(f"{SUMS} --mu 0.999", "mu=0.999", "below 0.999", "mode='server'"),
    simulate(f"{SUMS} --quorum 2", "quorum=2", "leave quorum out", "mode='server'"),
    simulate(f"{SUMS} --servers 2", "servers=2", "leave servers out", "mode='server'"),
    simulate(f"{SUMS} --dedicated", "dedicated=True", "leave dedicated out", "mode='server'"),
    simulate(f"{SUMS} --weighting inverse", "weighting='inverse'", "leave weighting out"),
    simulate("--algorithm d-psgd --quorum 2", "quorum=2", "d-psgd has no such"),
    simulate("--algorithm signum --adversaries 4:invert", "no rank 4", "the ranks are 0 to 3"),
    Row("train --adversaries 1:invert", ("ad-psgd has no such parameter", "leave adversaries out")),
    Row("train --slow 0=2", ("'0=2'", "RANK:FACTOR")),
    Row("train --slow 0:0", ("'0:0'", "RANK:FACTOR")),
    Row("train --slow x:2", ("'x:2'", "RANK:FACTOR")),
    Row("train --slow 0:2,0:3", ("rank 0 twice", "one factor")),
    simulate("--slow 9:2", "'9:2'", "the ranks are 0 to 3"),
    Row("train --jitter -1", ("jitter=-1", "not negative")),
    Row("train --jitter nan", ("jitter=nan", "finite")),
    Row("train --compute-s -0.1", ("compute_s=-0.1", "not negative")),
    simulate("--latency-s -1", "latency_s=-1", "not negative"),
    simulate("--bandwidth-Bps 0", "bandwidth_Bps=0", "above 0"),
    simulate("--network mesh", "network='mesh'", "fat-tree:K"),
    simulate("--network fat-tree:x", "network='fat-tree:x'", "fat-tree:K"),
    simulate("--network fat-tree:4:0", "network='fat-tree:4:0'", "over-subscribed by R"),
    simulate("--slow-links 0=2", "'0=2'", "RANK:FACTOR"),
    simulate("--slow-nodes 0=2", "'0=2'", "NODE:FACTOR"),
    simulate("--slow-nodes 9:2", "slow_nodes={9: 2.0}", "the nodes are 0 to 3"),
    simulate("--slow-links 9:2", "slow_links={9: 2.0}", "the ranks are 0 to 3"),
    simulate("--gpus-per-node 3", "4 ranks", "gpus_per_node=3", "a multiple"),
    simulate("--gpus-per-node 0", "gpus_per_node=0", "at least 1"),
    simulate("--node-bandwidth-Bps 0", "node_bandwidth_Bps=0", "above 0"),
    simulate("--parameters 0", "parameters=0", "above 0"),
]

SCHEDULES = [
    Row("train --lr-schedule cos", ("--lr-schedule cos", "did you mean cosine")),
    Row("train --lr-schedule step", ("lr_schedule='step'", "needs milestones")),
    Row("train --milestones 5", ("milestones='5'", "leave milestones out")),
    Row("train --lr-schedule step --milestones 9,5", ("milestones='9,5'", "epochs that ascend")),
    Row("train --lr-schedule step --milestones a", ("milestones='a'", "such as 15,25")),
    Row("train --warmup-epochs -1", ("warmup_epochs=-1", "not negative")),
    Row("train --weight-decay nan", ("weight_decay=nan", "finite")),
    Row("train --lr-decay inf", ("lr_decay=inf", "finite")),
    Row("train --lr-decay 0.5", ("lr_decay=0.5", "only a step schedule")),
    Row("train --reference-batch 64", ("reference_batch=64", "lr_scaling='linear'")),
    Row("train --reference-batch 0", ("reference_batch=0", "at least 1")),
    simulate("--epochs 1 --warmup-epochs 5", "warmup_epochs=5", "use fewer"),
    simulate("--duration-s 9 --lr-schedule cosine", "duration_s=9", "give epochs or steps"),
]

SIZES = [
    simulate("--topology hypercube --workers 6", "6", "use 4 or 8"),
    simulate("--topology torus --workers 7", "7, a prime", "use 6 or 8"),
    simulate("--topology bipartite-exponential --workers 5", "5", "use 4 or 6"),
    simulate(f"{PAIRED} --workers 5", "ring of 5 ranks", "ring of even size"),
    simulate(f"{PAIRED} --topology complete", "complete of 4", "bipartite-exponential"),
    Row("simulate", ("a launcher started 4", "--workers"), env={"OMPI_COMM_WORLD_SIZE": "4"}),
]

MATRICES = [
    matrix([[0.5, 0.5, 0], [0.5, 0.5, 0]], "square", "(2, 3)"),
    matrix(THIRD, "3 ranks", "start 3 ranks", workers=4),
    matrix(np.ones((3, 3)), "sum to 1", "Divide each row"),
    matrix([[math.nan, 1, 0], [0, 1, 0], [0, 0, 1]], "nan", "finite number"),
    matrix([[1.5, -0.5, 0], [-0.5, 1, 0.5], [0, 0.5, 0.5]], "-0.5", "must not be negative"),
    matrix(np.eye(3), "not connected", "--topology ring"),
    matrix([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]], "not strongly connected", "Add edges back"),
    matrix(
        [[0.5, 0.25, 0.25], [0.5, 0.5, 0], [0.5, 0, 0.5]],
        "doubly stochastic",
        "transpose W",
        more="--algorithm d-psgd",
    ),
    matrix([[0, 1], [1, 0]], "lazy", workers=2, more="--algorithm d-psgd"),
    Row("simulate --topology w.npy", ("w.npy", "No such file", "numpy.save")),
    Row("simulate --topology w.npy", ("w.npy", "numpy.save"), {"w.npy": "0.5 0.5\n0.5 0.5\n"}),
    Row("simulate --topology w.npy", ("w.npy", "numpy.save"), {"w.npy": npy(THIRD)[:150]}),
    Row(
        "simulate --topology w.npy",
        ("w.npy", "numpy.save", "plain numbers"),
        {"w.npy": npy(np.array([{}]), allow_pickle=True)},
    ),
    Row("simulate --topology w.csv", ("w.csv", "numpy.savetxt"), {"w.csv": "a,b\nc,d\n"}),
    Row("simulate --topology w.csv", ("w.csv", "numpy.savetxt"), {"w.csv": "1,2\n3\n"}),
    Row("simulate --topology w.txt", ("'w.txt'", ".npy or .csv"), {"w.txt": "1\n"}),
]

DATA = [
    simulate("--data-dir nowhere", "nowhere", "digits.csv.gz", "leave data_dir out"),
    Row(
        "simulate --data-dir d",
        ("digits.csv.gz", "truncated", "restore it"),
        {"d/digits.csv.gz": gzip.compress(b"0," * 64 + b"7\n")[:-9]},
    ),
    Row(
        "simulate --data-dir d",
        ("digits.csv.gz", "expected 1797 rows", "shape (1, 65)"),
        {"d/digits.csv.gz": DIGITS},
    ),
    Row(
        "simulate --data-dir d",
        ("digits.csv.gz", "expected 1797 rows", "restore it"),
        {"d/digits.csv.gz": b"PK\x03\x04 not gzip"},
    ),
    simulate("--data mnist", "'mnist' has no usual place", "--data-dir"),
    Row(
        "simulate --data fashion-mnist --data-dir d",
        ("train-images-idx3-ubyte not found", "in that folder: x", "dataset-fashion-mnist"),
        {"d/x": ""},
    ),
    Row(
        "simulate --data mnist --data-dir d",
        ("train-images-idx3-ubyte", "expected bytes in IDX layout", "found 3c 68 74 6d"),
        {"d/train-images-idx3-ubyte": "<html>", "d/train-labels-idx1-ubyte": ""},
    ),
    simulate("--data cifar10 --data-dir d", "cifar-10-batches-py", "no such folder", "tar xzf"),
    simulate("--data image-folder --data-dir d", "train not found", "train/CLASS/IMAGE"),
    simulate("--image-size 32", "image_size=32", "leave it out"),
    simulate("--image-size 0", "image_size=0", "at least 1 pixel"),
    simulate("--augment", "'digits' has no standard augmentation", "leave it out"),
    simulate("--alpha 0.3", "alpha=0.3", "choose partition 'dirichlet'"),
    simulate("--partition dirichlet", "alpha=None", "such as 0.3"),
    simulate("--partition dirichlet --alpha 0", "alpha=0.0", "above 0"),
]

READERS = [
    simulate("--data mnist --data-dir .", IDX, "IDX layout", "--data-dir"),
    Row(
        "simulate --data mnist --data-dir d",
        ("train-labels-idx1-ubyte", "IDX layout"),
        {f"d/{IDX}": b"\0\0\x08\x03" + b"\0\0\0\2" * 3 + b"12345678"},
    ),
    simulate("--data cifar10 --data-dir .", "data_batch_1", "tar xzf"),
    simulate("--data image-folder", "'image-folder'", "--data-dir"),
    simulate("--data image-folder --data-dir .", "train/CLASS/IMAGE", "--data-dir"),
    Row("train --image-size 0", ("image_size=0", "at least 1")),
    Row("train --alpha 0.5", ("alpha=0.5", "choose partition 'dirichlet'")),
    Row("train --partition dirichlet --alpha 0", ("alpha=0.0", "above 0")),
    Row("simulate --model lenet5", ("lenet5", "(1, 8, 8)", "use cnn-small or mlp")),
]

OUT = [
    Row("simulate --out o", ("out=o", "choose a writable --out"), {"o": "a file"}),
    Row("simulate --out o/p", ("out=o/p", "choose a writable --out"), {"o": "a file"}),
    Row("simulate --out /proc/o", ("out=/proc/o", "choose a writable --out")),
    Row("simulate --out o", ("holds a run already", "summary.json"), {"o/summary.json": "{}"}),
]

RUNTIME = [
    env("MPIMOMENTUM_DRIVER", "threads", "choose 'thread' or 'inline'"),
    env("MPIMOMENTUM_ISA", "mmx", "this build and processor have baseline"),
    env("MPIMOMENTUM_ISA", "sse", "processor have baseline", command="simulate --model mlp"),
    env("MPIMOMENTUM_TIMEOUT_S", "0", "above 0"),
    env("MPIMOMENTUM_TIMEOUT_S", "soon", "seconds"),
    env("MPIMOMENTUM_BACKOFF_S", "-1", "above 0"),
    env("MPIMOMENTUM_BACKOFF_S", "inf", "above 0"),
    env("MPIMOMENTUM_FAKE_NODES", "x", "a number of nodes"),
    env("MPIMOMENTUM_PRETEND_GPUS", "many", "a number of GPUs"),
    Row(
        "train --device cpu --staging ipc --model mlp --steps 1",
        ("staging=ipc", "vectors live on the CPU", "--device cuda"),
    ),
    Row(
        "train --device cuda --model mlp --steps 1",
        ("device=cuda", "there is no GPU", "use --device cpu"),
        env={"MPIMOMENTUM_PRETEND_GPUS": "0"},
    ),
    Row(
        "train --device cuda:2 --model mlp --steps 1",
        ("device=cuda:2", "2 GPUs, cuda:0 to cuda:1", "--device cuda"),
        env={"MPIMOMENTUM_PRETEND_GPUS": "2"},
    ),
    Row(
        "train --model mlp --steps 1",
        ("CUDA_VISIBLE_DEVICES=0,0", "twice", "unset"),
        env={"MPIMOMENTUM_PRETEND_GPUS": "2", "CUDA_VISIBLE_DEVICES": "0,0"},
    ),
]

FAILURES = [
    Row(
        f"simulate --model mlp --out o --progress off --lr 1e30 --algorithm {algorithm}",
        ("the gradient is not finite (training loss", "at step", "lr=1e+30", "smaller --lr"),
        code=1,
        leaves=frozenset({"o", "o/config.toml", "o/failure.txt", "o/run.json"}),
    )
    for algorithm in ("allreduce-sgd", "ad-psgd")
]

SAVING = [
    Row("train --on-failure retry", ("--on-failure retry", "abort", "continue")),
    Row("train --failure-timeout-s 5", ("failure_timeout_s=5", "without on_failure=continue")),
    Row(
        "train --on-failure continue --failure-timeout-s 0",
        ("failure_timeout_s=0", "must be above 0"),
    ),
    Row(
        "train --on-failure continue --failure-timeout-s 300",
        ("failure_timeout_s=300", "not below MPIMOMENTUM_TIMEOUT_S=300"),
    ),
    Row(
        "train --on-failure continue",
        ("MPIMOMENTUM_DRIVER=inline", "leave the variable out"),
        env={"MPIMOMENTUM_DRIVER": "inline"},
    ),
    Row(
        "train --on-failure continue --algorithm signum",
        ("signum cannot go on without a rank", "use ad-psgd or"),
    ),
    Row(
        "train --on-failure continue --algorithm gradient-tracking",
        ("gradient-tracking", "the sum of its trackers would keep the dead rank's gradients"),
    ),
    Row(
        "train --on-failure continue --variant paired",
        ("paired exchanges wait for the other end", "--variant lockfree"),
    ),
    simulate("--on-failure continue", "on_failure=continue", "leave it out"),
    Row("train --checkpoint-every 0", ("checkpoint_every=0", "at least 1")),
    Row("train --checkpoint-every ten", ("--checkpoint-every ten", "whole number")),
    Row("train --keep 5", ("keep=5 without checkpoint_every", "leave keep out")),
    Row("train --keep 0", ("keep=0", "at least 1")),
    Row("train", ("keep=-1", "at least 1"), env={"MPIMOMENTUM_KEEP": "-1"}),
    Row("train --resize", ("resize=True without resume", "resume=auto")),
    simulate("--checkpoint-every 5", "checkpoint_every=5", "leave checkpoint_every out"),
    simulate("--resume auto", "resume=auto", "leave resume out"),
]

HALF = '[\n{"name":"step 0","ph":"X","pid":0,"tid":0,"ts":0,"dur":1},\n{"name":\n'

LOOKING = [
    Row("trace merge", ("DIRECTORY", "--help")),
    Row("trace merge nowhere", ("nowhere", "no such directory", "--trace")),
    Row("trace merge .", ("trace-*.json", "--trace"), {"config.toml": ""}),
    Row("trace merge . --out no/t.json", ("no/t.json", "another --out"), {"trace-0.json": "[\n"}),
    Row("trace merge . --out trace-0.json", ("own timeline", "--out"), {"trace-0.json": "[\n"}),
    Row("trace merge .", ("trace-3.json", "not a rank's timeline"), {"trace-3.json": "{}"}),
    Row("trace merge .", ("trace-0.json", "line 3"), {"trace-0.json": HALF}),
    Row("report", ("FIRST", "--help")),
    Row("report nowhere", ("nowhere", "no such directory", "--out")),
    Row(
        "report .",
        ("config.toml is missing", "name one of the runs in it: a"),
        {"a/config.toml": ""},
    ),
    Row("report run.toml", ("run.toml is a file", "config.toml"), {"run.toml": ""}),
    Row("report .", ("config.toml is not TOML", "line 1"), {"config.toml": "a b"}),
    Row("report . --out no/r.html", ("no/r.html", "another --out"), {"config.toml": ""}),
    Row("report . .", ("given twice", "give each run once"), {"config.toml": ""}),
    Row("report .", ("summary.json", "no JSON object"), {"config.toml": "", "summary.json": "[]"}),
    Row(
        "report .",
        ("summary.json cannot be read", "line 1"),
        {"config.toml": "", "summary.json": "{"},
    ),
    Row("watch", ("DIRECTORY", "--help")),
    Row("watch nowhere --once", ("nowhere", "no such directory")),
    Row("watch .", ("config.toml is missing", "name a run's"), {"metrics.jsonl": ""}),
    Row("watch . --every-s 0", ("every-s", "0"), {"config.toml": ""}),
    Row("watch . --every-s soon", ("soon", "every-s"), {"config.toml": ""}),
    Row(
        "watch . --once",
        ("run.json cannot be read", "line 1"),
        {"config.toml": "", "run.json": "x"},
    ),
    Row("trace mrge .", ("mrge", "merge")),
    Row("train", ("MPIMOMENTUM_TRACE=2", "true"), env={"MPIMOMENTUM_TRACE": "2"}),
]

SUBMIT = [  # before sbatch is looked for
    Row("submit run.toml", ("run.toml, line 1", "lrr", "did you mean lr"), {"run.toml": "lrr = 1"}),
    Row("submit --lrr 1", ("--lrr", "`mpimomentum submit --help`")),
    Row("submit --record", ("record=True", "leave record out")),
    Row("submit --nodes 0", ("--nodes 0", "at least 1")),
    Row("submit --time soon", ("--time soon", "H:MM:SS")),
    Row("submit --time 2", ("--time 2", "give more time")),
    Row("submit --site nowhere", ("--site nowhere", "generic")),
    Row("submit --site ./my.sh", ("--site ./my.sh", "no such file")),
    Row("submit --launcher ssh", ("--launcher ssh", "srun or mpirun")),
    Row("submit --account a'b", ("--account", "without quotes")),
    Row("submit --sbatch=qos", ("--sbatch 'qos'", "--qos=debug")),
    Row("submit --partition label", ("--partition label", 'partition = "label"')),
    Row("submit --resume never", ("--resume", "by itself")),
    Row("submit --out a --resume never", ("--resume", "by itself")),
    Row("submit --resize", ("resize=True without resume", "resume=auto")),
    Row("submit --data cifar10", ("'cifar10' has no usual place", "--data-dir")),
    Row(
        "submit --nodes 2 --algorithm ad-psgd --on-failure continue",
        ("on_failure=continue on 2 nodes", "--nodes 1"),
    ),
    Row("submit --nodes 3 --topology hypercube", ("12 ranks", "power of two")),
    Row("submit --slow 4:2", ("slow='4:2'", "on 4 ranks")),
]

ROWS = [
    *LOOKING,
    *SUBMIT,
    *NAMES,
    *SYNTAX,
    *TYPES,
    *RANGES,
    *CALIBRATIONS,
    *SCHEDULES,
    *SIZES,
    *MATRICES,
    *DATA,
    *READERS,
    *OUT,
    *RUNTIME,
    *SAVING,
    *FAILURES,
]
