"""What serving remembers is what the model would read, and nothing leaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfsr_core.assembly.registries import ENCODERS
from pfsr_core.assembly.task import make_model
from pfsr_core.models.compressors import COVERED, TIME, LearnedTokens, SequenceContext
from pfsr_core.models.encoders.attention_masks import plan_around_tokens
from pfsr_core.models.next_item import NextItemModel
from pfsr_core.settings.fields import SettingsError, Value
from tests.helpers.tiny import tiny_settings

ITEMS = 30
ATTENTION = ("sasrec", "hstu")
RECURRENT = tuple(name for name in ENCODERS if name not in ATTENTION)
USERS = 3


def model_of(encoder: str, **changes: Value) -> NextItemModel:
    """In float64, every parameter moved away from its start; three users have rows."""
    settings = tiny_settings(
        model__encoder=encoder, model__num_layers=2, model__personal_memory=True, **changes
    )
    model = make_model(settings, ITEMS).double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        users = model.compressor.users
        model.compressor.users = torch.nn.Parameter(
            users.repeat(USERS + 1, *[1] * (users.dim() - 1))
        )
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
        model.compressor.users[0] = 0
    return model


def tokens_model(
    encoder: str = "sasrec", tokens: int = 2, recent: int = 4, max_length: int = 12
) -> NextItemModel:
    return model_of(
        encoder,
        model__compressor="tokens",
        model__tokens=tokens,
        model__recent=recent,
        model__max_length=max_length,
    )


def random_items(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, ITEMS + 1, (rows, length), generator=generator)


def random_times(rows: int, length: int) -> Tensor:
    """Seconds, gaps of a minute to a year."""
    gaps = torch.exp(17 * torch.rand(rows, length, generator=torch.Generator().manual_seed(2)))
    return 1_000_000_000 + gaps.long().cumsum(1)


def context_of(split_at: list[int], users: list[int] | None = None) -> SequenceContext:
    return SequenceContext(torch.tensor(split_at), torch.tensor(users or [0] * len(split_at)))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def same_top_ten(model: NextItemModel, found: Tensor, expected: Tensor) -> bool:
    scores = [hidden @ model.items.weight[1:].T for hidden in (found, expected)]
    return torch.equal(*(torch.topk(one, 10).indices for one in scores))


@pytest.mark.parametrize("encoder", ATTENTION)
class TestTokens:
    @settings(deadline=None, max_examples=60)
    @given(
        old=st.integers(0, 8),
        recent=st.integers(1, 4),
        tokens=st.integers(1, 5),
        padding=st.integers(0, 3),
        user=st.integers(0, USERS),
    )
    @torch.no_grad()
    def test_cached_equals_uncached(
        self, encoder: str, old: int, recent: int, tokens: int, padding: int, user: int
    ) -> None:
        model = tokens_model(encoder, tokens)
        items, times = random_items(2, old + recent), random_times(2, old + recent)
        known = (lambda part: part) if model.reads_times else (lambda _part: None)
        nothing = torch.zeros(2, min(padding, 12 - old - recent)).long()
        padded, padded_times = (torch.cat([part, nothing], 1) for part in (items, times))
        whole = model(padded, None, known(padded_times), context_of([old, old], [user, 0]))[
            :, old + recent - 1
        ]
        memory = model.compress(items[:, :old], torch.tensor([user, 0]), known(times[:, :old]))
        assert memory[COVERED].tolist() == [old, old]
        seen = [part for name, part in memory.items() if name not in (COVERED, TIME)]
        assert {part.shape[:3] for part in seen} == {(2, 2, tokens)}
        last, after = model.continue_from(items[:, old:], memory, known(times[:, old:]))
        close(last, whole)
        assert same_top_ten(model, last, whole)
        assert after is memory

    @torch.no_grad()
    def test_in_float32_too(self, encoder: str) -> None:
        model = tokens_model(encoder, 4, 50, 200).float()
        items = random_items(1, 200)
        whole = model(items, None, None, context_of([150], [1]))[:, -1]
        last, _ = model.continue_from(
            items[:, 150:], model.compress(items[:, :150], torch.tensor([1]))
        )
        torch.testing.assert_close(last, whole, rtol=0, atol=1e-5)
        assert same_top_ten(model, last, whole)

    @torch.no_grad()
    def test_rows_of_a_batch_have_cuts_of_their_own(self, encoder: str) -> None:
        model, items = tokens_model(encoder), random_items(4, 12)
        split_at = [0, 3, 8, 11]
        together = model(items, None, None, context_of(split_at, [0, 1, 2, 3]))
        for row, split in enumerate(split_at):
            alone = model(items[row : row + 1], None, None, context_of([split], [row]))
            close(together[row : row + 1], alone)

    @pytest.mark.parametrize("split", [0, 1, 5, 11])
    @torch.no_grad()
    def test_nothing_later_is_seen(self, encoder: str, split: int) -> None:
        model, items = tokens_model(encoder), random_items(1, 12)
        before = model(items, None, None, context_of([split]))
        for changed in range(12):
            other = items.clone()
            other[0, changed] = items[0, changed] % ITEMS + 1
            after = model(other, None, None, context_of([split]))
            close(after[:, :changed], before[:, :changed])
            assert not torch.allclose(after[:, changed], before[:, changed])

    @torch.no_grad()
    def test_what_is_old_reaches_the_recent_items_through_the_tokens_alone(
        self, encoder: str
    ) -> None:
        """With the tokens' keys and values held, a change of an old item changes nothing."""
        model, items = tokens_model(encoder), random_items(1, 12)
        other = items.clone()
        other[0, 2] = items[0, 2] % ITEMS + 1
        frozen = model.compress(items[:, :8], torch.tensor([0]))
        found = [model.continue_from(x[:, 8:], frozen)[0] for x in (items, other)]
        assert torch.equal(*found)
        whole = [model(x, None, None, context_of([8]))[:, -1] for x in (items, other)]
        assert not torch.allclose(*whole), "an old item must matter, or this test says nothing"
        close(found[0], whole[0])

    @torch.no_grad()
    def test_old_items_see_no_token(self, encoder: str) -> None:
        """Their outputs are those of a model that has no tokens."""
        model, items = tokens_model(encoder), random_items(1, 12)
        old = model(items, None, None, context_of([9]))[:, :9]
        with_others = tokens_model(encoder, 5)
        others = {n: t for n, t in model.state_dict().items() if not n.startswith("compressor")}
        with_others.load_state_dict(others, strict=False)
        close(with_others(items, None, None, context_of([9]))[:, :9], old)

    def test_tokens_of_users_differ_by_their_rows_alone(self, encoder: str) -> None:
        model, items = tokens_model(encoder), random_items(1, 12)
        outputs = [
            model(items, None, None, context_of([6], [user]))[:, -1] for user in range(USERS + 1)
        ]
        assert not torch.allclose(outputs[1], outputs[2])
        with torch.no_grad():
            model.compressor.users[1:] = 0
        for user in range(USERS + 1):
            close(model(items, None, None, context_of([6], [user]))[:, -1], outputs[0])

    def test_every_parameter_is_trained(self, encoder: str) -> None:
        model, items = tokens_model(encoder), random_items(2, 12)
        model(items, None, None, context_of([6, 3], [1, 2])).square().sum().backward()
        unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert [name for name in unused if not name.endswith("key.bias")] == []
        rows = model.compressor.users.grad.flatten(1).any(1)
        assert rows.tolist() == [False, True, True, False]


class TestCut:
    def test_the_mask_by_hand(self) -> None:
        plan = plan_around_tokens(torch.tensor([2]), 4, 2)
        assert plan.positions.tolist() == [[2, 2, 0, 1, 2, 3]]
        assert plan.visible[0].int().tolist() == [
            [1, 0, 1, 1, 0, 0],  # the first token: itself and what is old
            [1, 1, 1, 1, 0, 0],
            [0, 0, 1, 0, 0, 0],  # old items: causal, no tokens
            [0, 0, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],  # recent items: tokens, and each other
            [1, 1, 0, 0, 1, 1],
        ]

    @given(length=st.integers(0, 400), recent=st.integers(1, 60), seed=st.integers(0, 3))
    def test_where_a_history_is_cut(self, length: int, recent: int, seed: int) -> None:
        compressor, max_length = LearnedTokens(2, 1, recent, False), recent + 1 + 37 * seed
        split, first = compressor.memory_length(length), compressor.window_start(length, max_length)
        assert 0 <= first <= split <= length
        assert split == 0 or recent // 2 < length - split <= recent or recent == 1
        assert length - split <= recent or split == 0
        assert length - first <= max_length
        assert split - first <= max_length - recent
        assert compressor.memory_length(length + 1) in (split, split + compressor.stride)

    def test_a_row_of_a_user_needs_a_memory(self) -> None:
        with pytest.raises(SettingsError, match="personal-memory needs a memory"):
            model_of("sasrec")

    def test_needs_attention_and_something_to_compress(self) -> None:
        with pytest.raises(SettingsError, match="tokens need attention"):
            model_of("gru4rec", model__compressor="tokens")
        with pytest.raises(SettingsError, match=r"model.recent = 12 leaves nothing"):
            tokens_model(recent=12)


class TestState:
    @pytest.fixture(params=RECURRENT)
    def model(self, request: pytest.FixtureRequest) -> NextItemModel:
        return model_of(request.param, model__compressor="state")

    @torch.no_grad()
    def test_cached_equals_uncached(self, model: NextItemModel) -> None:
        items, users = random_items(2, 25), [2, 0]
        whole = model(items, None, None, context_of([0, 0], users))
        memory = model.compress(items[:, :0], torch.tensor(users))
        done = 0
        for count in (0, 1, 17, 0, 1, 6):
            last, memory = model.continue_from(items[:, done : done + count], memory)
            done += count
            assert memory[COVERED].tolist() == [done, done]
            if done:
                close(last, whole[:, done - 1])
                assert same_top_ten(model, last, whole[:, done - 1])

    @torch.no_grad()
    def test_the_memory_has_one_size(self, model: NextItemModel) -> None:
        short, long = (model.compress(random_items(1, n), torch.tensor([1])) for n in (3, 40))
        assert {n: t.shape for n, t in short.items()} == {n: t.shape for n, t in long.items()}

    @torch.no_grad()
    def test_padding_changes_nothing(self, model: NextItemModel) -> None:
        items = random_items(2, 6)
        padded = torch.cat([items, torch.zeros(2, 9).long()], 1)
        rows = context_of([0, 0], [1, 2])
        close(model(padded, None, None, rows)[:, :6], model(items, None, None, rows))

    def test_every_user_has_a_first_state(self, model: NextItemModel) -> None:
        items = random_items(2, 5)
        model(items, None, None, context_of([0, 0], [1, 3])).square().sum().backward()
        rows = model.compressor.users.grad.any(1)
        assert rows.tolist() == [False, True, False, True]


def test_attention_has_no_state_of_one_size() -> None:
    with pytest.raises(SettingsError, match="grows with the history"):
        model_of("sasrec", model__compressor="state")


@pytest.mark.parametrize(
    "build", [tokens_model, lambda: model_of("gru4rec", model__compressor="state")]
)
def test_dropout_reaches_every_place(build: Callable[[], NextItemModel]) -> None:
    """The bits of tokens come first, and every bit is one that a layer takes."""
    model, items = build(), random_items(1, 6)
    tokens = model.compressor.num_memory_tokens
    bits = torch.zeros(1, tokens + 6, model.noise_width, dtype=torch.int16)
    rows = context_of([3])
    before = model(items, bits, None, rows)
    for place in range(tokens + 6):
        other = bits.clone()
        other[0, place] = -(2**15)
        assert not torch.allclose(model(items, other, None, rows), before)
    with pytest.raises(ValueError, match="noise of width"):
        model(items, bits[..., :-1], None, rows)
