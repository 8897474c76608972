"""Whether Weights & Biases can be used online, found out without W&B: it would ask for a login, or wait for minutes."""

from __future__ import annotations

import netrc
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from datamodules.common.errors import UserError

Mode = Literal["auto", "online", "offline", "off"]
PROBE_SECONDS = 5.0


def answers(url: str) -> bool:
    """Tell whether an HTTP server answers in time, through the proxy where one is set."""
    answer: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
                answer.append(True)
        except urllib.error.HTTPError as error:  # it answers; from 500 on, somebody answers in its place
            answer.append(error.code < 500)
        except OSError as error:  # a private certificate authority is W&B's affair: the server is there
            answer.append("CERTIFICATE_VERIFY_FAILED" in str(error))
        except Exception:  # whatever else: not a server
            answer.append(False)

    at_most(PROBE_SECONDS, ask)  # name resolution knows no time-out
    return bool(answer and answer[0])


def at_most(seconds: float, act: Callable[[], None]) -> None:
    """Do something in a thread, and wait for it no longer than so many seconds."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)


def has_login(base_url: str, api_key: str | None) -> bool:
    """Tell whether W&B would find a login for a server without asking: a key, a token, or an entry in ``.netrc``.

    Args:
        base_url: The server's address.
        api_key: As W&B's own settings have it.
    """
    if api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next((p for p in map(Path, map(os.path.expanduser, places)) if p.is_file()), None)
    try:
        return path is not None and netrc.netrc(path).authenticators(urlsplit(base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def mode_of_environment() -> Mode:
    """What WANDB_MODE asks for; ``auto`` where it is not set.

    Raises:
        UserError: For a value that W&B does not know.
    """
    asked = os.environ.get("WANDB_MODE", "").lower()
    modes: dict[str, Mode] = {
        "": "auto",
        "online": "online",
        "run": "online",
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "off",
    }
    if asked not in modes:
        raise UserError(f"WANDB_MODE={asked} is not known: set it to online, offline or disabled, or unset it")
    return modes[asked]
