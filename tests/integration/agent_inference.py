"""INFERENCE from the SDK, through the door named by the argument, while other threads go on. Runs inside akbox."""

import json
import subprocess
import sys
import threading

from authority_nanos import AuthorityKernel, BudgetExceededError

ak = AuthorityKernel()
ak._transport._door = getattr(ak._transport, sys.argv[1])
cell = ak.alloc("counter", {"value": 1})
results: list[dict] = []
threads = [
    threading.Thread(
        target=lambda: results.append(ak.inference("claude-test", "slow 150 please reply 20", max_tokens=50))
    )
    for _ in range(3)
]
for thread in threads:
    thread.start()
reads = [ak.read(cell) for _ in range(20)]
forked = subprocess.run(["/bin/echo", "forked"], capture_output=True, text=True).stdout
waiting = len(results)
for thread in threads:
    thread.join()
try:
    ak.inference("gpt-test", "word " * 5000)
    refused = None
except BudgetExceededError as error:
    refused = error.name
print(json.dumps([len(reads), forked, waiting, [r["content"].split()[-1] for r in results], refused]))
