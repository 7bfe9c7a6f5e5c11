"""Kill ``harvest`` and ``train`` at random moments, resume them, and compare every byte with an uninterrupted run.

    python bench/kills.py --kills 20

Each round starts a fresh folder, kills the command (SIGKILL, nothing can be cleaned up) after a random fraction of the
time an uninterrupted run takes (above a third of it: before that it only loads), runs it again to its end, and compares
the hash of every file. Exits 1 if any differ.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from monolex.artifact import verify

HARVEST = "--corpus stdlib --max-tokens 60000 --context-length 128 --shard-mb 2 --sites resid_post.1 mlp_act.3"
TRAIN = (
    "--sites resid_post.1 --kinds tied batchtopk --ks 8 --ratios 1 --batch-size 256 --epochs 3 --save-every 10 "
    "--keep-checkpoints 2"
)


def command(verb: str, folder: Path, activations: Path) -> list[str]:
    """The command line of a verb that writes ``folder``."""
    program = [sys.executable, "-m", "monolex", verb]
    if verb == "harvest":
        return [*program, str(folder), *HARVEST.split()]
    return [*program, str(activations), str(folder), *TRAIN.split()]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a finished artefact, after checking them against the disk."""
    return {name: entry.sha256 for name, entry in verify(folder).files.items()}


def finish(arguments: list[str]) -> float:
    """Run to the end; seconds it took."""
    started = time.monotonic()
    subprocess.run(arguments, check=True, capture_output=True)
    return time.monotonic() - started


def kill_at(arguments: list[str], seconds: float) -> bool:
    """Kill after ``seconds``; False if it had ended by then."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def rounds(verb: str, home: Path, took: float, kills: int, chance: random.Random) -> int:
    """Kill and resume one verb ``kills`` times; how many results differed."""
    expected, killed, wrong = hashes(home / verb), 0, 0
    print(f"{verb}: {len(expected)} files, {took:.1f} s uninterrupted", flush=True)
    while killed < kills:
        folder = home / "round"
        arguments = command(verb, folder, home / "harvest")
        moment = chance.uniform(0.35, 1.0) * took
        if not kill_at(arguments, moment):
            shutil.rmtree(folder)
            continue
        killed += 1
        left = sum(1 for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
        finish(arguments)
        same = hashes(folder) == expected
        wrong += not same
        result = "identical" if same else "DIFFERENT"
        print(f"  kill {killed:2d} at {moment:5.1f} s: {left:3d} files left, {result}", flush=True)
        shutil.rmtree(folder)
    return wrong


def main() -> int:
    """All rounds of both verbs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each verb")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--only", choices=("harvest", "train"), help="kill only this verb")
    options = parser.parse_args()
    chance, wrong = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for verb in ("harvest", "train"):
            took = finish(command(verb, home / verb, home / "harvest"))
            if options.only in (None, verb):
                wrong += rounds(verb, home, took, options.kills, chance)
    print(f"{wrong} different")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
