"""Peak memory of a call, and what forks of a prefix cost."""

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from bloomlab.bench.models import Pair
from bloomlab.bench.plan import Plan
from bloomlab.bench.timing import Row
from bloomlab.machine import free_ram

PROCESS = Path("/proc/self")
RESET = "5"  # written to clear_refs, the peak starts anew (man 5 proc)
TURNS = 3
COPIES = 4  # of the prefix by each fork that goes on, at worst: so many must fit in memory
EVERY = 0.001  # seconds between two looks where the system keeps no peak


def peak(pair: Pair, plan: Plan) -> Iterator[Row]:
    """Memory that a long forward takes for a while; logits of the last token, no cache."""
    ids = pair.ids(1, plan.long)
    turns = [
        [
            float(peak_extra(lambda m=m: m(ids, use_cache=False, logits_to_keep=1), ids.device))
            for m in (pair.ours, pair.theirs)
        ]
        for _ in range(1 + TURNS)
    ][1:]  # the first maps weights and wakes libraries
    ours, theirs = zip(*turns, strict=True)
    case = f"extra memory, {plan.long} tokens"
    yield Row(case=case, peer="transformers", ours=ours, theirs=theirs, unit="B")


@torch.no_grad()
def forks(pair: Pair, plan: Plan) -> Iterator[Row]:
    """Forks of one prefix: the bytes the cache counts, those the process takes, and going on."""
    ids = pair.ids(1, plan.prefix)
    device = ids.device
    token = pair.sizes.cache * pair.ours.dtype.itemsize
    pair.ours(ids, use_cache=True, logits_to_keep=1)  # wakes libraries
    empty = held(device)
    past = pair.ours(ids, use_cache=True, logits_to_keep=1).past_key_values
    filled = held(device)
    many = past.fork(plan.forks)
    what = f"{plan.forks} forks of {plan.prefix} tokens"
    yield _bytes(f"{what}, counted", "the prefix", many.nbytes, token * plan.prefix)
    prefix = max(1, filled - empty)
    taken = prefix + max(0, held(device) - filled)
    yield _bytes(f"{what}, process", "the prefix", taken, prefix)
    room = free_ram()[0] if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    going = min(plan.forks, max(1, room // (COPIES * token * plan.prefix)))
    many = past.fork(going)
    pair.ours(pair.ids(going, 1), past_key_values=many, logits_to_keep=1, return_type="logits")
    what = f"{going} forks of {plan.prefix}, a token on"
    yield _bytes(what, "each token once", many.nbytes, token * (plan.prefix + going))


def peak_extra(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes taken at once during a call, beyond those held before it.

    On a CPU of the whole process (resident memory), on a GPU of torch's tensors.
    """
    with torch.no_grad():
        before = held(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            call()
            return torch.cuda.max_memory_allocated(device) - before
        if _kernel_counts_anew():
            call()
            return max(0, _status("VmHWM") - before)
        return max(0, _watched(call) - before)


def held(device: torch.device) -> int:
    """Bytes now in use: of the process, spare room given back, or of torch's tensors on a GPU."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if PROCESS.exists() else None
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss


def _kernel_counts_anew() -> bool:
    """Whether the kernel forgot the process's peak; Linux does, others keep none to forget."""
    try:
        (PROCESS / "clear_refs").write_text(RESET)
        return _status("VmHWM") > 0
    except OSError:
        return False


def _status(name: str) -> int:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _watched(call: Callable[[], object]) -> int:
    """Most resident bytes seen during a call, looking again and again."""
    process, done, seen = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(EVERY):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        seen.append(process.memory_info().rss)
        done.set()
        watcher.join()
    return max(seen)


def _bytes(case: str, peer: str, ours: int, theirs: int) -> Row:
    return Row(
        case=case, peer=peer, ours=(float(ours),), theirs=(float(theirs),), unit="B", kind="cost"
    )
