"""What must not be shown: secrets out of any text that leaves the process for a log, a screen, MLflow or a manifest."""

import json
import os
import re
from collections.abc import Mapping

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|(?:API)?KEY|CREDENTIALS?)(?:_|$)", re.IGNORECASE
)
_ALERT_NAME = re.compile("PIPELINES_ALERT_")  # an alert's channel: its URL is the secret
_PLACE_NAME = re.compile(r"_(FILE|PATH|DIR|URL|URI)$", re.IGNORECASE)  # where a secret lies is none
_SHORTEST = 8  # characters: a shorter value (a port, "true") is no secret, and hiding it would garble the text
_PATTERNS = (
    (re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@]+@"), rf"\1{HIDDEN}@"),  # user, password or both in a URI
    (
        re.compile(r"([?&](?:[\w-]*(?:signature|token|password|secret|credential|key)|sig)=)[^\s&]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), HIDDEN),  # AWS
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),  # Hugging Face
    (re.compile(r"\b(?:sk|ghp|gho|glpat|xox[abp])[-_][A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
)


def redacted(text: str, env: Mapping[str, str] | None = None) -> str:
    """`text` without the values of this process's secret variables and without what looks like a secret.

    A variable is secret if its name says so (HF_TOKEN, AWS_ACCESS_KEY_ID, PIPELINES_ALERT_ONCALL, but not
    TOKENIZERS_PARALLELISM); `env` is os.environ unless given.
    """
    known = [
        value
        for name, value in (os.environ if env is None else env).items()
        if len(value) >= _SHORTEST
        and (_ALERT_NAME.match(name) or (_SECRET_NAME.search(name) and not _PLACE_NAME.search(name)))
    ]
    known += [json.dumps(value)[1:-1] for value in known]  # as it stands inside a JSON string
    for value in sorted(known, key=len, reverse=True):  # a secret may be part of a longer one
        text = text.replace(value, HIDDEN)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text
