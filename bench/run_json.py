"""What the comparing benches share: a command is run, and its last line is one JSON object."""
import json
import subprocess
import sys


def run(command, environment):
    result = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])
