"""The rollout: one program, one sandbox, one score.

The program is not to be trusted. The judge, which runs in the same sandbox, therefore starts it as a process of its
own, looks only at what that process writes, and prints the score itself.
"""

from __future__ import annotations

import shoal
from examples.training.policy import NUMBERS, Program, source_of

JUDGE = f"""
import itertools, json, subprocess, sys
cases = list(itertools.product(range(2), repeat={NUMBERS}))  # what sorts all zeros and ones sorts everything
given = "".join(" ".join(map(str, case)) + "\\n" for case in cases)
ran = subprocess.run([sys.executable, "/tmp/program.py"], input=given, capture_output=True, text=True, timeout=5)
wanted = [" ".join(map(str, sorted(case))) for case in cases]
right = sum(ours == theirs for ours, theirs in zip(wanted, ran.stdout.splitlines()))
print(json.dumps({{"score": right / len(cases), "right": right}}))
"""

SANDBOX = {"cpu": (0.125, 1.0), "memory": (64, 256), "network": "none", "timeout": 60.0}


async def judge(sandbox: shoal.Sandbox, program: Program) -> float:
    """The share of all cases that the program sorts; 0 where it fails or takes too long."""
    await sandbox.files.write_text.aio("/tmp/program.py", source_of(program))
    earned = await shoal.reward.aio(sandbox, ["python3", "-c", JUDGE], timeout=10, floor=0.0, bounds=(0, 1))
    return earned.score
