"""What a host learns of its models' pauses."""

from workers.host.pauses import LONGEST_S, Pauses


def test_a_model_that_nobody_knows_is_not_expected_back_soon() -> None:
    assert Pauses().gap_s("a") == LONGEST_S


def test_pauses_that_end_soon_are_learnt_within_a_few() -> None:
    pauses = Pauses()

    for second in range(0, 60, 3):  # one second of work, two of pause
        pauses.observe("a", has_work=True, loaded=True, now=second)
        pauses.observe("a", has_work=False, loaded=True, now=second + 1)

    assert pauses.gap_s("a") < 4
    assert pauses.idle_since_s("a") == 57


def test_a_model_that_was_kept_in_vain_is_not_expected_back_for_longer_each_time() -> None:
    pauses, now, expected = Pauses(), 0.0, []

    for _ in range(40):  # it is asked again only once the other has answered
        pauses.observe("a", has_work=True, loaded=False, now=now)
        pauses.observe("a", has_work=True, loaded=True, now=now + 0.5)
        pauses.observe("a", has_work=False, loaded=True, now=now + 1)
        kept_s = 6 if pauses.gap_s("a") < 6 else 0
        pauses.observe("a", has_work=False, loaded=True, now=now + 1 + kept_s)
        pauses.observe("a", has_work=False, loaded=False, now=now + 1 + kept_s)
        now += 5 + kept_s
        expected.append(kept_s)

    assert 1 <= expected.count(6) <= 8
    assert expected[-12:].count(6) <= 2


def test_a_model_that_is_forgotten_is_new_again() -> None:
    pauses = Pauses()
    pauses.observe("a", has_work=True, loaded=True, now=1)

    pauses.forget("a")

    assert pauses.gap_s("a") == LONGEST_S
