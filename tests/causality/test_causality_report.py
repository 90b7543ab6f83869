"""``bczoo causality`` from the command line, against loops over single steps."""

import json
import math
import shutil
import sys
import warnings
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from drawing import check_legible, figures, texts
from PIL import Image
from test_causality import step_by_step

from bczoo.causality.clip import Clip
from bczoo.causality.donors import Donors, sample_donors
from bczoo.causality.metrics import evaluate
from bczoo.causality.perturb import perturbations
from bczoo.causality.report import RecordingSums, causality_report, measure
from bczoo.causality.scores import kl
from bczoo.cli import main
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.style import DPI, WIDTH
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.loader import WindowLoader
from bczoo.data.recording import RecordingWriter
from bczoo.data.windows import Plan, split

SPACE = ActionSpace.keyboard_mouse()
FRAMES = {"a": 14, "b": 9, "c": 16, "d": 6}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bczoo"])
    return tmp_path


def record(folder, frames, seed=0, embedding=None):
    """Random pictures and actions; every fourth step is the policy's own."""
    rng = np.random.default_rng([seed, frames])
    told = {} if embedding is None else {"text": "go", "text_embedding": embedding}
    with RecordingWriter(folder, size=tiny.SIZE) as writer:
        for t in range(frames):
            picture = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            values = {"keys": [str(rng.choice(["w", "a"]))], "mouse_dx": int(rng.integers(-2, 3))}
            actor = {"system": values} if t % 4 == 3 else {"user": values}
            writer.add(picture, **(actor if t < frames - 1 else {}), **told)
    return folder


def opinionated(**arguments):
    policy = tiny.tiny_policy(seed=3, **arguments).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.3)
    return policy


@pytest.fixture(scope="module")
def policy():
    return opinionated(text_dim=None)


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    return policy.save_pretrained(tmp_path_factory.mktemp("published") / "policy")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("recordings")
    for name, frames in FRAMES.items():
        record(root / name, frames)
    return root


def command(*words):
    """Exit status and what causality.json holds."""
    status = main(["causality", *(str(word) for word in words), "--out", "out"])
    return status, json.loads(open("out/causality.json").read(), parse_constant=lambda word: pytest.fail(word))


def windows(policy, root):
    """Every window of every recording by name, a batch of one."""
    index = open_index(root, policy.action_space, policy.input_spec.fps, policy.input_spec.text_dim)
    dataset = WindowDataset(index, policy.input_spec.window, policy.input_spec.frame_size)
    for r in index.usable:
        for start in range(0, int(index.n_frames[r]) - 1, policy.input_spec.window):
            yield str(index.names[r]), dataset[int(r), start]


def loader_of(policy, root, batch_size=3, **arguments):
    spec = policy.input_spec
    index = open_index(root, policy.action_space, spec.fps, spec.text_dim)
    plan = Plan(index, index.usable, spec.window, batch_size, shuffle=False, spread=True, **arguments)
    return WindowLoader(WindowDataset(index, spec.window, spec.frame_size), plan)


@torch.no_grad()
def slow(policy, root, kinds):
    """Values of every recording's counted steps, one forward for each."""
    seen = defaultdict(lambda: defaultdict(list))
    donors = Donors.read(policy, loader_of(policy, root))
    for name, batch in windows(policy, root):
        counted = (batch["user"] & batch["valid"])[0].tolist()
        ids = batch["actions"]
        images = policy.encode(batch["frames"])
        logits = policy(batch["frames"], ids)
        for kind, replacement in perturbations(kinds, freeze_steps=2).items():
            other = replacement(policy, batch, images, donors)
            nats = step_by_step(policy, batch, other.encoded, 1)
            for t in (counted & other.where.numpy()[0]).nonzero()[0]:
                for group, values in nats.items():
                    seen[name][f"{kind}/{group}"].append(values[0, t].item())
        for group, values in logits.items():
            p = values[0].double().softmax(-1)
            for t in np.flatnonzero(counted):
                now = ids[group][0, t].tolist()
                seen[name][f"nats/{group}"].append(np.mean([-p[t, n, i].log().item() for n, i in enumerate(now)]))
                seen[name][f"hit/{group}"].append(np.mean([p[t, n].argmax().item() == i for n, i in enumerate(now)]))
                if t > 0 and counted[t - 1]:
                    before = ids[group][0, t - 1].tolist()
                    again = np.mean([i == j for i, j in zip(now, before, strict=True)])
                    put = np.mean([p[t, n, i].item() for n, i in enumerate(before)])
                    seen[name][f"persistence/{group}"].append(put - again)
                    if any(ids[g][0, t].tolist() != ids[g][0, t - 1].tolist() for g in ids):
                        seen[name][f"change/{group}"].append(seen[name][f"nats/{group}"][-1])
    return seen


def test_the_report_is_that_of_single_steps(policy, folder, root, capsys):
    kinds = ["blank", "freeze", "noise", "swap"]
    status, told = command(folder, "--data", root, "--perturb", "blank,freeze,noise,swap", "--freeze_steps", 2)
    assert status == 0
    printed = capsys.readouterr().out
    seen = slow(policy, root, kinds)

    def expected(recordings):
        of = {key: [v for name in recordings for v in seen[name][key]] for key in seen["a"]}
        out = {}
        names = ("causality", "causality_freeze", "causality_noise", "causality_swap")
        for kind, name in zip(kinds, names, strict=True):
            out |= {f"{name}/{g.name}": np.mean(of[f"{kind}/{g.name}"]) for g in SPACE.groups}
            out[name] = sum(out[f"{name}/{g.name}"] for g in SPACE.groups)
        for g in SPACE.groups:
            out[f"perplexity/{g.name}"] = math.exp(np.mean(of[f"nats/{g.name}"]))
            out[f"accuracy/{g.name}"] = np.mean(of[f"hit/{g.name}"])
            out[f"persistence/{g.name}"] = np.mean(of[f"persistence/{g.name}"])
            out[f"change_perplexity/{g.name}"] = math.exp(np.mean(of[f"change/{g.name}"] or np.nan))
        return out

    assert list(told["recordings"]) == list(FRAMES)
    for name, value in expected(FRAMES).items():
        assert told["metrics"][name]["value"] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        assert told["metrics"][name]["low"] <= value <= told["metrics"][name]["high"], name
    assert told["metrics"]["causality"]["low"] < told["metrics"]["causality"]["high"]
    for recording in FRAMES:
        assert told["recordings"][recording]["steps"] == len(seen[recording]["nats/keys"])
        for name, value in expected([recording]).items():
            assert told["recordings"][recording].get(name, np.nan) == pytest.approx(
                value, rel=1e-4, abs=1e-6, nan_ok=True
            ), name
    assert told["steps"]["cross_entropy"] == sum(len(seen[r]["nats/keys"]) for r in FRAMES)
    assert told["steps"]["causality_freeze"] == sum(len(seen[r]["freeze/keys"]) for r in FRAMES)
    share = told["metrics"]["causality"]["value"]
    share /= share + told["metrics"]["action_reliance"]["value"]
    assert told["metrics"]["visual_share"]["value"] == pytest.approx(share)
    assert told["metrics"]["relative_cross_entropy/mouse_dy"]["value"] is None  # the mouse never moves up or down

    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 + 2 + 8
    assert max(len(line) for line in printed.splitlines() if "/" not in line) <= 120, "paths are as long as they are"
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in (line[1:-1].split("|") for line in table)}
    one = told["metrics"]["causality"]
    assert cells["causality, blank"][0] == f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
    assert cells["perplexity"][4] == f"{told['metrics']['perplexity/mouse_dy']['value']:.3f}"
    assert cells["relative cross-entropy"][-1] == "n/a"
    picture = np.asarray(Image.open("out/causality.png").convert("RGB"))
    assert picture.shape[1] == round(WIDTH * DPI) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100

    options = ["--perturb", "blank,freeze,noise,swap", "--freeze_steps", 2, "--batch_size", 3]
    again = command(folder, "--data", root, *options)[1]
    assert again["settings"].pop("batch_size") == 3 and told["settings"].pop("batch_size") == 8
    assert again["steps"] == told["steps"]
    for name, estimate in told["metrics"].items():
        for end, value in estimate.items():
            close = None if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
            assert again["metrics"][name][end] == close, name


def test_donors_are_windows_of_other_recordings_whatever_the_batches(policy, root):
    index = open_index(root, SPACE, 20.0, None)
    keys = sample_donors(Plan(index, index.usable, 5, 4, shuffle=False))
    assert Counter(keys) == Counter((r, s) for r in index.usable for s in range(0, int(index.n_frames[r]) - 1, 5))
    assert {r for r, _ in keys[:4]} == {0, 1, 2, 3}, "recordings take turns"
    assert all(s + 5 < index.n_frames[r] for r, s in keys[:4]), "full windows come first"

    donors = Donors.read(policy, loader_of(policy, root))
    every = WindowDataset(index, 5, tiny.SIZE).__getitems__(keys)
    row, _, _ = donors._places(every)
    assert (donors.recording[row[:, 0]] != every["recording"].numpy()).all()
    assert len(set(row[:, 0].tolist())) > 4
    shown, where = donors.encoded_for(every)
    done, _ = donors.actions_for(every)
    assert torch.equal(where, every["valid"])
    with torch.no_grad():
        tokens = policy.encode(every["frames"])
    for b, t in every["valid"].nonzero().tolist():
        of_donor = tokens[keys.index((donors.recording[row[b, 0]], donors.start[row[b, 0]]))]
        given = int(donors.valid[row[b, 0]].sum())  # a shorter donor goes round
        torch.testing.assert_close(shown[b, t], of_donor[t % given], atol=1e-5, rtol=1e-4)
        assert torch.equal(done["keys"][b, t], donors.actions["keys"][row[b, 0], t % given])
    # of any other batch, with a window that only fills it up: the same
    some = WindowDataset(index, 5, tiny.SIZE).__getitems__([keys[7], (-1, 0), keys[2]])
    again, where = donors.encoded_for(some)
    torch.testing.assert_close(again[[0, 2]], shown[[7, 2]])
    assert not where[1].any()
    # and what a loader hands out does not matter, only what it has
    other = Donors.read(policy, loader_of(policy, root, batch_size=2, rank=1, world_size=2))
    torch.testing.assert_close(other.encoded, donors.encoded)
    assert other.start.tolist() == donors.start.tolist()


def test_a_recording_alone_is_swapped_with_its_own_far_end(policy, root):
    donors = Donors.read(policy, loader_of(policy, root / "c"))
    dataset = loader_of(policy, root / "c").windows
    row, step, _ = donors._places(dataset.__getitems__([(0, 0), (0, 5), (0, 10)]))
    assert donors.start[row[:, 0]].tolist() in ([10, 0, 0], [10, 10, 0])
    assert step.tolist() == [[0, 1, 2, 3, 4]] * 3
    # a window that is alone shows its own other half
    donors = Donors.read(policy, loader_of(policy, root / "d"))
    alone = loader_of(policy, root / "d").windows[0, 0]
    _, step, where = donors._places(alone)
    assert step.tolist() == [[2, 3, 4, 0, 1]] and torch.equal(where, alone["valid"])


def test_windows_that_cannot_be_read_are_no_donors(policy, root, here):
    shutil.copytree(root, here / "broken")
    index = open_index(here / "broken", SPACE, 20.0, None)
    with index.reading(1) as folder:
        (folder / index.video_name(1, tiny.SIZE)).write_bytes(b"no video")
    loader = loader_of(policy, here / "broken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        donors = Donors.read(policy, loader)
        row, _, where = donors._places(next(iter(loader)))
    assert donors.valid[row[:, 0]].any(axis=1).all() and where.any()
    assert 1 not in donors.recording[1:]


def test_counterfactual_frames_alone_are_scored(policy, folder, root, here, capsys):
    index = open_index(root, SPACE, 20.0, None)
    kept = {("a", 1), ("a", 6), ("c", 12)}
    own = {("a", 3)}  # the policy's own step, which does not count
    expected = []
    with torch.no_grad():
        for name, batch in windows(policy, root):
            for t in range(5):
                place = name, int(batch["start"]) + t
                if place not in kept | own:
                    continue
                shown = batch["frames"].clone()
                shown[0, t] = 255 - shown[0, t]
                for edited, frames in (("same", batch["frames"]), ("inverted", shown)):
                    path = here / edited / name / f"{place[1]:06d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(frames[0, t].permute(1, 2, 0).numpy()).save(path)
                if place in kept:
                    plain, other = (policy(f, batch["actions"]) for f in (batch["frames"], shown))
                    expected.append(sum(values[0, t].item() for values in kl(plain, other).values()))
    assert len(expected) == 3
    options = ["--data", root, "--perturb", "blank"]
    _, same = command(folder, *options, "--counterfactual", here / "same")
    assert same["metrics"]["causality_counterfactual"]["value"] == pytest.approx(0, abs=1e-8)
    _, told = command(folder, *options, "--counterfactual", here / "inverted")
    assert told["metrics"]["causality_counterfactual"]["value"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert told["steps"]["causality_counterfactual"] == 3
    assert "3 of 4 counterfactual frames" in capsys.readouterr().out
    assert "causality_counterfactual" not in told["recordings"]["b"]
    # alone it is the first perturbation, and what it is drawn for is at those frames only
    (here / "inverted" / "a" / "000003.png").unlink()
    result = causality_report(
        str(folder), str(root), ["counterfactual"], counterfactual="inverted", out="out", clip_seconds=0.5
    )
    assert result.clip.name == "a"  # the first that is long enough
    assert result.metrics["causality"].value == pytest.approx(np.mean(expected), rel=1e-4)
    assert (~result.clip.scores["causality"].isnan()).nonzero()[:, 0].tolist() == [1, 6]

    for name, words in (("z/000001.png", "no recording 'z'"), ("a/000014.png", "0 to 13"), ("a/one.png", "0 to 13")):
        wrong = here / "wrong" / name
        wrong.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(wrong)
        assert main(["causality", str(folder), "--data", str(root), "--counterfactual", str(here / "wrong")]) == 1
        assert words in capsys.readouterr().err
        wrong.unlink()
        wrong.parent.rmdir()
    assert int(index.n_frames[0]) == 14


def test_one_recording_has_no_interval(folder, root, capsys):
    status, told = command(folder, "--data", root / "a", "--perturb", "swap")
    assert status == 0 and list(told["recordings"]) == ["a"]
    assert told["metrics"]["causality"]["value"] > 0
    assert all(one["low"] is None and one["high"] is None for one in told["metrics"].values())
    assert "no intervals" in capsys.readouterr().out
    # a single window is shown its own frames, and actions, of another moment
    _, told = command(folder, "--data", record(root.parent / "single", 6), "--perturb", "swap")
    assert told["metrics"]["causality"]["value"] > 0 and told["metrics"]["action_reliance"]["value"] > 0


def test_which_recordings_are_measured(folder, root):
    index = open_index(root, SPACE, 20.0, None)
    held_out = [str(index.names[r]) for r in split(index, 0.4)[1]]
    assert 0 < len(held_out) < 4
    options = ["--data", root, "--perturb", "blank"]
    _, told = command(folder, *options, "--part", "val", "--val_fraction", 0.4)
    assert list(told["recordings"]) == held_out
    chosen = [list(command(folder, *options, "--limit", n)[1]["recordings"]) for n in (1, 2)]
    assert [len(names) for names in chosen] == [1, 2] and set(chosen[0]) < set(chosen[1])


def test_a_sample_of_windows_is_measured_and_the_whole_clip(policy, folder, root, capsys):
    options = ["--data", root, "--perturb", "blank", "--batch_size", 2, "--clip_seconds", 0.5]
    _, every = command(folder, *options, "--windows", "null")
    there = every["settings"]["windows"]
    assert f"measuring {there} windows of 5 steps, of {len(FRAMES)} recordings" in capsys.readouterr().out
    _, some = command(folder, *options, "--windows", 3)
    assert f"measuring 4 windows of 5 steps of {there} (--windows null measures all" in capsys.readouterr().out
    assert some["settings"]["windows"] == 4 and some["steps"]["causality"] <= 20 < every["steps"]["causality"]
    excerpts = []
    for windows in (None, 3):
        loader = loader_of(policy, root, batch_size=2)
        index = loader.plan.index
        excerpts.append(Clip.of(index, index.usable, policy.input_spec, None, 0.0, 0.5))
        measure(policy, loader, perturbations(["blank"]), clip=excerpts[-1], progress=False, windows=windows)
    torch.testing.assert_close(*(one.scores["causality"] for one in excerpts), equal_nan=True, atol=1e-5, rtol=1e-4)
    assert torch.equal(excerpts[0].frames, excerpts[1].frames)
    assert main(["causality", str(folder), "--data", str(root), "--windows", "0"]) == 1
    assert "windows is a number from 1 on" in capsys.readouterr().err


def test_a_run_is_told_apart_from_its_training_recordings(policy, folder, root, here, capsys):
    policy.save_pretrained(here / "mine", record={"data": {"root": [str(root)]}})
    command("mine", "--data", root, "--perturb", "blank")
    assert "--part val" in capsys.readouterr().out
    command("mine", "--data", root, "--perturb", "blank", "--part", "val")
    assert "--part val" not in capsys.readouterr().out


def test_the_clip_holds_the_scores_of_its_steps(policy, folder, root):
    result = causality_report(str(folder), str(root), "blank", clip="c", clip_start=0.15, clip_seconds=0.5, out="out")
    clip = result.clip
    assert (clip.name, clip.first, len(clip.frames)) == ("c", 3, 10)
    assert clip.seconds[0].item() == pytest.approx(0.15)
    scored, ids = torch.full((15,), torch.nan), torch.zeros(15, 1, dtype=torch.long)
    for name, batch in windows(policy, root):
        if name != "c":
            continue
        measures = evaluate(policy, batch, ["blank"]).measures
        for t in range(5):
            at = int(batch["start"]) + t
            if at < 15:
                values, where = measures["causality"]
                scored[at] = values[0, t] if where[0, t] else torch.nan
                ids[at] = batch["actions"]["mouse_dx"][0, t]
                if 3 <= at < 13:
                    assert torch.equal(clip.frames[at - 3], batch["frames"][0, t])
    torch.testing.assert_close(clip.scores["causality"].float(), scored[3:13], equal_nan=True, rtol=1e-4, atol=1e-6)
    assert scored[3:13].isnan().tolist() == [t % 4 == 3 for t in range(3, 13)]
    assert torch.equal(clip.ids["mouse_dx"], ids[3:13])
    assert not clip.changes[[0, 1, 4, 5, 8, 9]].any()  # does not count, or the step before does not
    # not only within a window: frame 5 begins the second one
    same = all(torch.equal(group[2], group[1]) for group in clip.ids.values())
    assert clip.changes[2].item() is not same


def test_the_picture_shows_the_moments(folder, root, monkeypatch):
    """The bars under the frames are as high as the scores."""
    from matplotlib.axes import Axes

    drawn, bar = [], Axes.bar

    def spy(self, x, height, width, bottom=0, **options):
        drawn.append((x, height, bottom + 0))
        return bar(self, x, height, width, bottom, **options)

    monkeypatch.setattr(Axes, "bar", spy)
    with figures() as pictures:
        result = causality_report(str(folder), str(root), "blank", out="out")
    *groups, (unscored, _, _) = drawn
    total, scores = 0, result.clip.scores["causality"].numpy()
    for _, height, bottom in groups:
        np.testing.assert_allclose(bottom, total)  # each stands on those before
        total = total + height
    np.testing.assert_allclose(total, np.nan_to_num(scores), rtol=1e-5, atol=1e-6)
    assert result.clip.name == "c"  # the longest, as none has ten seconds
    np.testing.assert_allclose(groups[0][0], np.arange(15) / 20)
    np.testing.assert_allclose(unscored, np.flatnonzero(np.isnan(scores)) / 20)
    check_legible(pictures[0])
    places = [image.get_extent()[:2] for image in pictures[0].axes[0].images]
    assert len(places) == 6 and all(end < begin for (_, end), (begin, _) in pairwise(places)), "side by side"
    said = texts(pictures[0])
    for expected in ("keys", "mouse buttons", "not scored", "action reliance", "seconds of the recording"):
        assert expected in said
    for expected in ("shown above", "the recorded action changes", "a window begins, without a past"):
        assert expected in said


def test_an_instruction_is_told_where_there_is_none(here):
    policy = opinionated(text_dim=4)
    embedding = np.array([3.0, -2.0, 1.0, 5.0], np.float32)
    record(here / "told" / "a", 8, embedding=embedding)
    record(here / "silent" / "a", 8)

    def means(name, instruction):
        index = open_index(here / name, SPACE, 20.0, 4)
        plan = Plan(index, index.usable, 5, 2, shuffle=False, spread=True)
        loader = WindowLoader(WindowDataset(index, 5, tiny.SIZE), plan)
        return measure(policy, loader, perturbations(["blank"]), instruction=instruction, progress=False).means

    told, silent = means("told", None), means("silent", None)
    instructed, other = means("silent", torch.from_numpy(embedding)), means("told", torch.ones(4))
    for name, value in told.items():
        torch.testing.assert_close(instructed[name], value)
        torch.testing.assert_close(other[name], value)
    assert any(not torch.allclose(silent[name], value, rtol=1e-3) for name, value in told.items())


def test_sums_of_recordings_are_kept_apart():
    sums = RecordingSums(np.array([2, 5, 7]))
    values, where = torch.arange(12.0).view(3, 4), torch.ones(3, 4).bool()
    where[0, 1:] = False
    sums.add({"score": (values, where)}, torch.tensor([7, 2, 7]))
    sums.add({"score": (values + 1, where)}, torch.tensor([2, 2, 7]))
    assert sums.counts["score"].tolist() == [9, 0, 9]
    each = sums.means_of_each["score"]
    assert each[0].item() == pytest.approx((22 + 1 + 26) / 9) and each[2].item() == pytest.approx((0 + 38 + 42) / 9)
    assert each[1].isnan() and sums.means["score"].item() == pytest.approx((49 + 80) / 18)


def test_what_cannot_be_done_is_told(folder, root, here, capsys):
    for words, wrong in (
        (["--perturb", "swap,swpa"], "'swpa'"),
        (["--perturb", ","], "no perturbation"),
        (["--perturb", "counterfactual"], "folder of your frames"),
        (["--replaced", "0"], "from 1 on"),
        (["--batch_size", "0"], "from 1 on"),
        (["--clip", "z"], "no recording 'z'"),
        (["--clip", "a", "--clip_start", "9"], "0.65 s"),
        (["--text", "go north"], "'go north'"),
        (["--part", "val", "--val_fraction", "0"], "val_fraction"),
        (["--device", "nonsense"], "'nonsense'"),
        (["--counterfactual", str(here)], "holds no counterfactual frames"),
    ):
        assert main(["causality", str(folder), "--data", str(root), *words, "--out", "out"]) == 1, words
        error = capsys.readouterr().err
        assert wrong in error and "Traceback" not in error
        assert not (here / "out").exists()
    assert main(["causality", str(here / "nowhere"), "--data", str(root)]) == 1
    assert main(["causality", str(folder), "--data", str(here / "nowhere")]) == 1
    with RecordingWriter(here / "own" / "a", size=tiny.SIZE) as writer:
        for _ in range(7):
            writer.add(np.zeros((8, 8, 3), np.uint8), system={"keys": ["w"]})
    with pytest.raises(UserError, match="no step counts in the clip of 'a'"):
        causality_report(str(folder), str(here / "own"), out="out")
    record(here / "own" / "b", 6)
    assert causality_report(str(folder), str(here / "own"), out="out").clip.name == "b"
