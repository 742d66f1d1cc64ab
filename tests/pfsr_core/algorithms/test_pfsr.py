"""PFSR's own rules, against its equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfsr_core.algorithms.fed_avg import fed_avg
from pfsr_core.algorithms.pfsr import PERSONAL, TARGET_NORM, UNMASKED, Magnitude, pfsr, split_state
from pfsr_core.algorithms.variable_response import Response
from pfsr_core.assembly.registries import local_training
from pfsr_core.assembly.task import make_task
from pfsr_core.federated import simulation
from pfsr_core.federated.algorithm import FederatedAlgorithm, Reply, ServerState
from tests.helpers.tiny import tiny_world

OFF = Magnitude(keep=0.0, magnitude=0.0)
ON = Magnitude()
FEW_SAMPLES = Response(fisher_samples=16)


WHOLE = replace(FEW_SAMPLES, serve="personal")  # the whole encoder stays in the state


def build(
    response: Response = FEW_SAMPLES,
    loss: Magnitude = ON,
    aggregation: str = "zero",
) -> tuple[FederatedAlgorithm, FederatedAlgorithm, list]:
    settings, federation, _ = tiny_world(train__local_epochs=4)
    task = make_task(settings, federation.split.item_ids)
    training = local_training(settings)
    algorithm = pfsr(task, training, response=response, loss=loss, aggregation=aggregation)
    return algorithm, fed_avg(task, training), list(federation.clients)


def test_the_first_round_is_federated_averaging() -> None:
    algorithm, averaging, clients = build()
    ours, _ = simulation.run(algorithm, clients, rounds=1, seed=0)
    theirs, _ = simulation.run(averaging, clients, rounds=1, seed=0)
    assert all(torch.equal(ours.params[name], theirs.params[name]) for name in ours.params)


def test_without_masks_and_terms_every_round_is_federated_averaging() -> None:
    algorithm, averaging, clients = build(Response(mask_mode="none"), OFF)
    ours, _ = simulation.run(algorithm, clients, rounds=3, seed=0)
    theirs, _ = simulation.run(averaging, clients, rounds=3, seed=0)
    assert all(torch.equal(ours.params[name], theirs.params[name]) for name in ours.params)


def test_everything_kept_sends_the_shared_model_back() -> None:
    algorithm, _, clients = build(Response(rho=1.0, fisher_samples=64))
    server, states = simulation.run(algorithm, clients, rounds=1, seed=0)
    update = algorithm.client_update(server.broadcast(), states[clients[0].client], clients[0])
    kept = update.metrics["mask-ratio/"]
    sent = [not torch.equal(update.params[name], server.params[name]) for name in server.params]
    assert kept > 0.8
    still = [name for name in server.params if update.metrics[f"mask-ratio/{name}"] == 1.0]
    assert still and all(torch.equal(update.params[n], server.params[n]) for n in still)
    assert sum(sent) <= len(sent) - len(still)


def test_masked_coordinates_are_not_sent_and_stay_personal() -> None:
    algorithm, _, clients = build(WHOLE)
    server, states = simulation.run(algorithm, clients, rounds=2, seed=0)
    update = algorithm.client_update(server.broadcast(), states[clients[0].client], clients[0])
    personal = split_state(update.state, server.params).encoder
    for name, shared in server.params.items():
        unsent = update.params[name] == shared
        assert float(unsent.float().mean()) >= update.metrics[f"mask-ratio/{name}"] - 1e-6
        agrees = (update.params[name] == personal[name]) | unsent
        assert bool(agrees.all())


def test_the_personal_encoder_is_state_and_never_sent() -> None:
    algorithm, _, clients = build()
    _, states = simulation.run(algorithm, clients, rounds=1, seed=0)
    assert any(name.startswith(PERSONAL) for name in states[clients[0].client])
    assert not any(name.startswith(PERSONAL) for name in algorithm.reply_shapes)


def test_the_target_norm_is_the_median_of_the_clients_norms() -> None:
    algorithm, _, _ = build()
    server = ServerState({"a": torch.zeros(1)})
    reply = Reply({"a": torch.ones(1)}, 3.0, {}, (5.0, 1.0, 2.0))
    assert algorithm.server_update(server, reply).signals == {TARGET_NORM: 2.0}


def test_the_magnitude_term_is_off_in_round_one_and_pulls_later() -> None:
    strong, _, clients = build(loss=Magnitude(keep=0.0, magnitude=50.0))
    off, _, _ = build(loss=OFF)
    server, states = simulation.run(off, clients, rounds=1, seed=0)
    small = replace(server, signals={TARGET_NORM: 0.0})
    state, data = states[clients[0].client], clients[0]
    pulled = strong.client_update(small.broadcast(), state, data).norm
    free = off.client_update(small.broadcast(), state, data).norm
    assert pulled < 0.9 * free
    first = strong.client_update(strong.init().broadcast(), strong.init_client(data), data)
    assert first.norm == off.client_update(off.init().broadcast(), off.init_client(data), data).norm


def test_a_magnitude_term_from_above_does_not_make_small_changes_larger() -> None:
    off, _, clients = build(loss=OFF)
    server, states = simulation.run(off, clients, rounds=1, seed=0)
    large = replace(server, signals={TARGET_NORM: 1e3})
    state, data = states[clients[0].client], clients[0]

    def norm(loss: Magnitude) -> float:
        return build(loss=loss)[0].client_update(large.broadcast(), state, data).norm

    assert norm(Magnitude(keep=0.0, magnitude=50.0)) == norm(OFF)
    assert norm(Magnitude(keep=0.0, magnitude=50.0, side="both")) > norm(OFF)


def test_keeping_holds_the_kept_part_to_the_old_personal_one() -> None:
    strong, _, clients = build(WHOLE, Magnitude(keep=100.0, magnitude=0.0))
    off, _, _ = build(WHOLE, OFF)
    server, states = simulation.run(off, clients, rounds=1, seed=0)
    old = split_state(states[clients[0].client], server.params).encoder

    def moved(algorithm: FederatedAlgorithm) -> float:
        update = algorithm.client_update(server.broadcast(), states[clients[0].client], clients[0])
        personal = split_state(update.state, server.params).encoder
        name = "encoder.layers.0.feed_forward.expand.weight"
        masked = update.params[name] == server.params[name]
        return float((personal[name] - old[name])[masked].abs().sum())

    assert moved(strong) < moved(off)


def test_count_aggregation_divides_by_those_who_did_not_mask() -> None:
    algorithm, _, _ = build(aggregation="count")
    server = ServerState({"a": torch.tensor([1.0, 1.0, 1.0])})
    mean = {"a": torch.tensor([2.0, 2.0, 1.0]), UNMASKED + "a": torch.tensor([1.0, 0.5, 0.0])}
    new = algorithm.server_update(server, Reply(mean, 2.0, {}, (1.0,)))
    assert new.params["a"].tolist() == [2.0, 3.0, 1.0]


@pytest.mark.parametrize("mode", ["quantile", "minmax"])
@pytest.mark.parametrize("aggregation", ["zero", "count"])
@pytest.mark.parametrize("two_phases", [True, False])
def test_every_switch_runs_and_stays_finite(mode: str, aggregation: str, two_phases: bool) -> None:
    response = Response(mask_mode=mode, fisher_samples=16)
    algorithm, _, clients = build(response, Magnitude(two_phases=two_phases), aggregation)
    server, states = simulation.run(algorithm, clients, rounds=3, seed=0)
    for params in (server.params, *states.values()):
        assert all(bool(tensor.isfinite().all()) for tensor in params.values())


def kept_in_round_two(response: Response) -> float:
    algorithm, _, clients = build(response)
    server, states = simulation.run(algorithm, clients, rounds=1, seed=0)
    update = algorithm.client_update(server.broadcast(), states[clients[0].client], clients[0])
    return update.metrics["mask-ratio/"]


def test_masks_differ_between_the_modes() -> None:
    top = kept_in_round_two(FEW_SAMPLES)
    few = kept_in_round_two(replace(FEW_SAMPLES, mask_mode="minmax"))
    assert 0.2 < top <= 0.26 and few < top


def test_serving_merges_what_the_next_round_would_start_from() -> None:
    algorithm, _, clients = build()
    server, states = simulation.run(algorithm, clients, rounds=2, seed=0)
    state = states[clients[0].client]
    own = split_state(state, server.params)
    served = algorithm.personalize(server.params, state)
    for name, shared in server.params.items():
        expected = torch.where(own.masks[name], own.encoder[name], shared)
        assert torch.equal(served[name], expected)


def test_only_the_kept_coordinates_are_remembered_unless_all_are_served() -> None:
    """Either state leads to the same round; the smaller one serves the same merged model."""
    few, _, clients = build()
    every, _, _ = build(WHOLE)
    server, states = simulation.run(few, clients, rounds=2, seed=0)
    same_server, whole_states = simulation.run(every, clients, rounds=2, seed=0)
    assert all(torch.equal(server.params[n], same_server.params[n]) for n in server.params)
    state, whole = (found[clients[0].client] for found in (states, whole_states))
    assert sum(t.nbytes for t in state.values()) < 0.5 * sum(t.nbytes for t in whole.values())
    served = few.personalize(server.params, state)
    merged = few.personalize(server.params, whole)
    assert all(torch.equal(served[name], merged[name]) for name in merged)
    own, left = split_state(whole, server.params), every.personalize(server.params, whole)
    assert all(torch.equal(left[name], own.encoder[name]) for name in server.params)


def test_a_global_anchor_holds_the_kept_part_to_the_received_one() -> None:
    def gap(loss: Magnitude) -> float:
        algorithm, _, clients = build(WHOLE, loss)
        server, states = simulation.run(build(WHOLE, OFF)[0], clients, rounds=1, seed=0)
        state = states[clients[0].client]
        masks = split_state(state, server.params).masks
        update = algorithm.client_update(server.broadcast(), state, clients[0])
        personal = split_state(update.state, server.params).encoder
        gaps = [(personal[n] - server.params[n])[masks[n]].abs().sum() for n in masks]
        return float(sum(gaps))

    held = gap(Magnitude(keep=100.0, magnitude=0.0, anchor="global"))
    assert held < gap(Magnitude(keep=100.0, magnitude=0.0, anchor="local"))
