"""An assembled model: a task, the algorithm over it, and the fingerprint that names both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import FederatedAlgorithm
from pfsr_core.models.compressors import USERS
from pfsr_core.models.parameter_names import ROW_NAMES
from pfsr_core.params import Shapes, fingerprint, shapes_of
from pfsr_core.training.task import Task


@dataclass(frozen=True)
class Assembly:
    """A task and an algorithm over it.

    ``shapes``: all parameters, the private ones with a row for each item of the catalogue.
    ``fingerprint`` names the model. ``vectors_digest`` and ``vectors_method`` of public item
    vectors: see :class:`pfsr_core.items.text_vectors.ItemVectors`; "" without them.
    """

    task: Task
    algorithm: FederatedAlgorithm
    shapes: Shapes
    fingerprint: str
    vectors_digest: str = ""
    vectors_method: str = ""

    @cached_property
    def shared_shapes(self) -> Shapes:
        """Names and shapes of what the server sends: one vector on the wire, in this order."""
        return shapes_of(self.algorithm.server.init().params)

    def fingerprint_of(self, client_data: ClientDataset) -> str:
        """Names the model, and whose rows a client's state holds: of which items and users."""
        private_names, state_facts = self.task.partition.private, []
        if client_data.own_catalogue is not None:
            state_facts.append(hashlib.sha256(client_data.own_catalogue.tobytes()).hexdigest())
        if private_names & set(ROW_NAMES):
            state_facts.append(hashlib.sha256(client_data.touched.tobytes()).hexdigest())
        if USERS in private_names:
            state_facts.extend(user.user for user in client_data.users)
        return fingerprint({}, self.fingerprint, *state_facts) if state_facts else self.fingerprint
