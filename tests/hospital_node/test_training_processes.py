"""Several processes of one hospital train one round: the same mechanism as one process, and nobody waits for ever.

The processes are forked from this one, so that torch is loaded once, and meet in a file instead of at torchrun's port.
"""

import multiprocessing
import os
import traceback

import numpy as np
import pytest
import torch
from training_world import SILENT, URI, people, person, plan, replayed

from hospital_node import network
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.process_group import ProcessGroup, Stopped, digest_of
from hospital_node.train import Segmentation, TrainingError, train_round
from hospital_node.work import WorkFailed
from proto.plan import Plan

FORK = multiprocessing.get_context("fork")
WAIT_S = 300
SGD = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 2}
EVERYBODY = {"inverse_sampling_rate": 1}


def together(folder, work, count=2):
    """What `work(group)` gives in each of `count` processes, or the sentence of the exception that ended it."""
    pipes = [FORK.Pipe(duplex=False) for _ in range(count)]
    processes = [FORK.Process(target=_process, args=(folder, work, at, count, pipes[at][1])) for at in range(count)]
    for process, (_, end) in zip(processes, pipes, strict=True):
        process.start()
        end.close()
    try:
        return [_said(pipe, at) for at, (pipe, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(WAIT_S)
            process.kill()


def _said(pipe, at):
    assert pipe.poll(WAIT_S), f"process {at} waits"
    try:
        return pipe.recv()
    except EOFError:
        return "died"


def _process(folder, work, index, count, pipe):
    os.environ.update(RANK=str(index), WORLD_SIZE=str(count))
    torch.set_num_threads(1)
    try:
        given = work(ProcessGroup(f"file://{folder}/meeting"))
    except (TrainingError, WorkFailed, ArithmeticError) as error:
        given = f"{type(error).__name__}: {error}"
    except AssertionError:
        given = traceback.format_exc()
    pipe.send(given)
    pipe.close()
    torch.distributed.destroy_process_group()
    os._exit(0)


def base_of(one):
    torch.manual_seed(3)
    return network.vector_of(network.build(one.network))


def round_of(one, cohort, **options):
    """A round with replayed chance: in a group only the first process's is used."""
    base = base_of(one)

    def work(group):
        rand = replayed(b"first") if group.index == 0 else replayed(b"another")
        trained = train_round(one, URI, base, cohort, rand=rand, ranks=group, **options)
        return trained.update, trained.history, trained.nonfinite

    return work


@pytest.mark.parametrize("count", [2, 3])
def test_the_update_is_that_of_one_process_noise_and_draws_included(tmp_path, count):
    """The same coins and the same noise; only the order of the sum differs."""
    one, cohort = plan(training=SGD, privacy={"noise_multiplier": 2.0, "clip_norm": 0.3}), people(7)
    alone = train_round(one, URI, base_of(one), cohort, rand=replayed(b"first"))
    for update, history, _ in together(tmp_path, round_of(one, cohort), count):
        assert history == alone.history == ((2.0, 0.5, 2),)
        assert update == pytest.approx(alone.update, abs=2e-6)
    assert np.abs(alone.update).max() > 0.01


def test_every_process_ends_with_the_same_model_to_the_bit(tmp_path):
    first, second = together(tmp_path, round_of(plan(training={"local_steps": 3}), people(4)))
    assert np.array_equal(first[0], second[0])


def test_noise_is_added_once(tmp_path):
    one = plan(
        training={**SGD, "local_steps": 1, "learning_rate": 1.0},
        privacy={"noise_multiplier": 3.0, "clip_norm": 0.5, "inverse_sampling_rate": 2},
    )
    (update, _, _), _ = together(tmp_path, round_of(one, []))
    assert update.std() == pytest.approx(3.0 * 0.5 / 10, rel=5 / (2 * len(update)) ** 0.5)


def test_each_drawn_patient_is_shown_to_one_process_and_clipped_there(tmp_path):
    one = plan(training={**SGD, "local_steps": 1}, privacy={**SILENT, **EVERYBODY, "clip_norm": 0.02})
    base, cohort = base_of(one), people(5)

    def work(group):
        seen = []

        class Watched(Segmentation):
            def loss(self, module, plan_, patient, rng):
                seen.append(patient.key)
                return super().loss(module, plan_, patient, rng)

        original, norms = PatientOptimizer.clip_and_accumulate, []

        def recorded(self):
            before = [p.summed_grad.clone() if p.summed_grad is not None else 0 for p in self.params]
            original(self)
            added = [(p.summed_grad - b).reshape(-1) for p, b in zip(self.params, before, strict=True)]
            norms.append(float(torch.cat(added).double().norm()))

        PatientOptimizer.clip_and_accumulate = recorded
        train_round(one, URI, base, cohort, ranks=group, objective=Watched())
        return seen, norms

    (first, norms), (second, more) = together(tmp_path, work)
    assert sorted(first + second) == [patient.key for patient in cohort]
    assert (len(first), len(second)) == (3, 2)
    assert all(0.019 < norm <= 0.02 * (1 + 1e-5) for norm in norms + more)


def test_broken_patients_are_counted_over_all_processes(tmp_path):
    broken = [person("b1"), person("b2"), person("b3")]
    for patient in broken:
        patient.cases[0].image[:] = np.nan
    one = plan(training=SGD, privacy=EVERYBODY)
    results = together(tmp_path, round_of(one, [*people(2), *broken]))
    assert [nonfinite for _, _, nonfinite in results] == [6, 6]  # three in each of two steps
    assert all(np.isfinite(update).all() for update, _, _ in results)


def test_processes_that_see_different_patients_do_not_begin(tmp_path):
    one = plan()
    base = base_of(one)

    def work(group):
        return train_round(one, URI, base, people(3 + group.index), ranks=group)

    for sentence in together(tmp_path, work):
        assert sentence.startswith("TrainingError: the processes of this hospital do not see the same patients")


def test_the_order_of_the_patients_counts(tmp_path):
    assert digest_of(people(3)) != digest_of(people(3)[::-1])
    assert digest_of([person("ab"), person("c")]) != digest_of([person("a"), person("bc")])


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("when", ["in a step", "between steps", "before the first step"])
def test_a_process_that_fails_ends_the_round_of_all_and_the_next_round_runs(tmp_path, who, when):
    one = plan(training={**SGD, "local_steps": 3}, privacy=EVERYBODY)
    base, cohort = base_of(one), people(4)

    def work(group):
        class Failing(Segmentation):
            def check(self, plan_):
                if when == "before the first step" and group.index == who:
                    raise ZeroDivisionError("boom")

            def loss(self, *given):
                if when == "in a step" and group.index == who:
                    raise ZeroDivisionError("boom")
                return super().loss(*given)

        def on_step(progress):
            if when == "between steps" and group.index == who and progress.step == 2:
                raise ZeroDivisionError("boom")

        try:
            train_round(one, URI, base, cohort, ranks=group, objective=Failing(), on_step=on_step)
        except ZeroDivisionError:
            said = "boom"
        except TrainingError as error:
            said = type(error).__name__
        again = train_round(one, URI, base, cohort, ranks=group)
        return said, again.history

    results = together(tmp_path, work)
    assert results[who][0] == "boom"
    assert results[1 - who][0] in {"TrainingError", "Stopped"}
    assert issubclass(Stopped, TrainingError)
    assert [history for _, history in results] == [((1.0, 1.0, 3),)] * 2


def test_a_process_that_died_is_named_and_waited_for_by_nobody(tmp_path):
    one = plan(privacy=EVERYBODY)
    base = base_of(one)

    def work(group):
        class Dying(Segmentation):
            def loss(self, *given):
                if group.index == 1:
                    os._exit(1)
                return super().loss(*given)

        return train_round(one, URI, base, people(4), ranks=group, objective=Dying())

    first, second = together(tmp_path, work)
    assert first == "TrainingError: a process of this hospital's group is gone: start the group again"
    assert second == "died"


def test_the_others_follow_round_after_round_until_they_are_dismissed(tmp_path):
    """What a node does: the first process trains when the coordinator asks, the others when the first one does."""
    one = plan(training=SGD, privacy=EVERYBODY)
    fields = one.model_dump(mode="json")
    other = Plan.model_validate({**fields, "training": {**fields["training"], "parts": "norms-and-biases"}})
    base, cohort = base_of(one), people(3)

    def work(group):
        if group.index:
            asked = []

            def patients_of(plan_):
                asked.append(plan_.training.parts)
                if len(asked) == 2:
                    raise WorkFailed("too-few-patients", "unreadable")
                return cohort

            group.follow(patients_of, threads=1)
            return asked
        first = group.train(one, URI, base, cohort, threads=1, round=1, rand=replayed(b"x"))
        with pytest.raises(TrainingError, match="could not read them"):
            group.train(one, URI, base, cohort, threads=1, round=2)
        third = group.train(other, URI, base + first.update, cohort, threads=1, round=3)
        group.dismiss()
        return first.update, len(third.update)

    (update, length), asked = together(tmp_path, work)
    assert asked == ["all", "all", "norms-and-biases"]
    assert update == pytest.approx(train_round(one, URI, base, cohort, rand=replayed(b"x")).update, abs=2e-6)
    assert 0 < length < len(base) / 10
