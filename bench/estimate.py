"""What `--dry-run` says a run takes beside what it takes: minutes by the clock and peak memory, stage by stage.

    python bench/estimate.py RUN.TOML OUT

prints the table; OUT must be empty. On Linux only, where a process's peak can be set back between two stages.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from monolex.runtime import size

LINE = re.compile(r"^(\S.*?)\s+to do\s+\S+ \S?B\s+([\d.]+ \S?B)\s+([\d.]+)$")
BEGINS = re.compile(r"^\[\d+/\d+\] (.+)$")
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def planned(toml: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Minutes and bytes of every step."""
    command = [sys.executable, "-m", "monolex", "run", str(toml), "--out", str(out), "--dry-run"]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    steps = {}
    for line in table.splitlines():
        if match := LINE.match(line):
            number, unit = match[2].split()
            steps[match[1]] = (float(match[3]), float(number) * UNITS[unit])
    return steps


def measured(toml: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Minutes and peak bytes of every step of the run, done in one process."""
    command = [sys.executable, "-m", "monolex", "run", str(toml), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    proc, steps, step, began = Path("/proc") / str(process.pid), {}, "", time.monotonic()
    for line in process.stderr:
        match = BEGINS.match(line.strip())
        if not match:
            continue
        if step:
            steps[step] = ((time.monotonic() - began) / 60, peak(proc))
        (proc / "clear_refs").write_text("5")  # the peak begins again at what is resident now
        step, began = match[1], time.monotonic()
    assert process.wait() == 0, "the run did not end well; run it by itself to see why"
    return steps


def peak(proc: Path) -> float:
    """Peak resident memory of a process since it was set back, in bytes."""
    lines = (proc / "status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("toml", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    said = planned(options.toml, options.out)
    done = measured(options.toml, options.out)
    total, peaks = [0.0, 0.0], [max(memory for _, memory in steps.values()) for steps in (said, done)]
    print("| stage | minutes: said | were | ratio | memory: said | was | ratio |")
    print("|---|---|---|---|---|---|---|")
    for step, (minutes, memory) in done.items():
        if step not in said:
            continue
        total[0] += said[step][0]
        total[1] += minutes
        of_minutes = f"{said[step][0] / minutes:.2f}" if minutes > 0.1 else ""
        row = [step, f"{said[step][0]:.1f}", f"{minutes:.2f}", of_minutes]
        row += [size(int(said[step][1])), size(int(memory)), f"{said[step][1] / memory:.2f}"]
        print(f"| {' | '.join(row)} |")
    row = [f"{total[0]:.1f}", f"{total[1]:.2f}", f"{total[0] / total[1]:.2f}"]
    row += [size(int(peaks[0])), size(int(peaks[1])), f"{peaks[0] / peaks[1]:.2f}"]
    print(f"| in all | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
