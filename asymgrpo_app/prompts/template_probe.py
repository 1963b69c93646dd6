"""Renders a chat template once in a process of its own, which may take no more than so much time and memory.

A chat template is a program of the model's authors. Its sandbox keeps it from the machine, but not from loops without
end. `python -P template_probe.py` reads its arguments as JSON; what else may be wrong is found in the run itself.
"""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECONDS = 5  # of the processor; sound templates take milliseconds
_MEMORY = 4 * 2**30  # addresses, most of which the libraries take
_LONGEST = 2**24
_TOO_MUCH = 3  # exit code


def takes_too_much(template: str, messages: Sequence[Mapping[str, str]], arguments: Mapping[str, Any]) -> bool:
    """Whether a template takes more time or memory than a prompt can, or makes a longer one.

    Args:
        template: The Jinja template.
        messages: What it is given.
        arguments: Its further variables.
    """
    given = json.dumps([template, messages, dict(arguments)], default=str)
    command = [sys.executable, "-P", str(Path(__file__))]
    try:
        # Longer than the limit of the processor's time, on a machine that is busy.
        done = subprocess.run(command, input=given, text=True, capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False  # the machine is slow; the time that the template takes of the processor is limited
    return done.returncode in (-signal.SIGXCPU, -signal.SIGKILL, _TOO_MUCH)


def _rendered() -> int:
    from transformers.utils.chat_template_utils import render_jinja_template

    template, messages, arguments = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    options = {"chat_template": template, "add_generation_prompt": True, **arguments}
    try:
        rendered: Any = render_jinja_template([messages], **options)
    except MemoryError:
        return _TOO_MUCH
    except Exception:  # the run's own rendering says what is wrong
        return 0
    return _TOO_MUCH if len(rendered[0][0]) > _LONGEST else 0


if __name__ == "__main__":
    sys.exit(_rendered())
