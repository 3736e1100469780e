"""The table of verbs: everything that the cluster's controller can be asked, declared once.

A declaration gives a verb's arguments, result and errors. Its decorator says who may ask, and how the verb travels.
The rest follows from here: the controller's dispatch, both transports, the addresses and scopes of the API's routes,
the actions in the audit log, and what is sent again.

Rules for every verb
    - Errors are of `shoal.model.errors`. What a caller may not see does not exist for it: `SandboxNotFound`,
      `EnvironmentNotFound`.
    - After `Unavailable` a transport asks again, as far as the verb's `retry` allows.

Over HTTP, an argument that the path names goes into the path. The others are the query of a GET or DELETE, or the
members of the JSON body of a POST or PUT; a lone `Quota` or `RolloutReport` is the body itself. A verb without an
address is asked only inside the cluster, or has a route of its own kind.

A module for each resource declares its verbs; their bodies are empty, for the controller has the handlers. All are
reached from here, as in `verbs.create`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.model.verbs.access_verbs import *
from shoal.model.verbs.build_verbs import *
from shoal.model.verbs.history_verbs import *
from shoal.model.verbs.image_verbs import *
from shoal.model.verbs.internal_verbs import *
from shoal.model.verbs.machine_verbs import *
from shoal.model.verbs.pool_verbs import *
from shoal.model.verbs.rollout_verbs import *
from shoal.model.verbs.sandbox_verbs import *
from shoal.model.verbs.secret_verbs import *
from shoal.model.verbs.tunnel_verbs import *
from shoal.model.verbs.verb import BASE_S as BASE_S
from shoal.model.verbs.verb import LONGEST_WAIT_S as LONGEST_WAIT_S
from shoal.model.verbs.verb import PUSH_S as PUSH_S
from shoal.model.verbs.verb import SNAPSHOT_S as SNAPSHOT_S
from shoal.model.verbs.verb import VOLUME_S as VOLUME_S
from shoal.model.verbs.verb import Made as Made
from shoal.model.verbs.verb import Retry as Retry
from shoal.model.verbs.verb import Verb as Verb
from shoal.model.verbs.volume_verbs import *

VERBS: Mapping[str, Verb[..., Any]] = {each.name: each for each in [*globals().values()] if isinstance(each, Verb)}
"""All of them, by name."""
