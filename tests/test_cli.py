"""``python -m convx``: its commands on real input, what they write, and what they say about bad input."""

import io
import json
import re
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest

import convx
from convx import _cpu, nn, reference
from convx._cli import main

demo = pytest.importorskip("convx._cli.demo", reason="needs the extra demo", exc_type=ModuleNotFoundError)
train = pytest.importorskip("convx._cli.train", reason="needs the extra demo", exc_type=ModuleNotFoundError)
Image = pytest.importorskip("PIL.Image")
Console = pytest.importorskip("rich.console").Console


def failure(capsys, *arguments):
    """Run a command that must fail and return what it says: one line on stderr."""
    assert main(list(map(str, arguments))) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


class TestInfo:
    def test_text(self, capsys):
        assert main(["info"]) == 0
        text = capsys.readouterr().out
        config = _cpu.config()
        for fact in (convx.__version__, config["isa_reason"], config["threads_reason"], f"NumPy {np.__version__}"):
            assert fact in text
        assert re.search(r"^CUDA +(cannot be used: |0: )", text, re.M)
        assert main([]) == 0
        assert capsys.readouterr().out == text

    def test_json_from_a_process_of_its_own(self, tmp_path):
        command = [sys.executable, "-m", "convx", "info", "--json"]
        facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
        assert facts["isa"] in facts["isas"]
        assert facts["version"] == convx.__version__
        assert facts["numpy"] == np.__version__
        assert facts["cuda"]["available"] == (not facts["cuda"]["reason"]) == bool(facts["cuda"]["devices"])


@pytest.fixture
def nothing_but_numpy(monkeypatch):
    """Hide what the extra demo installs, and forget the modules that use it."""
    for name in [name for name in sys.modules if name.startswith("convx._cli.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "PIL", "rich", "sklearn"):
        for loaded in [each for each in sys.modules if each.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("nothing_but_numpy")
class TestWithoutTheExtra:
    @pytest.mark.parametrize("command", ["demo", "train"])
    def test_the_error_says_what_to_install(self, command, capsys):
        error = failure(capsys, command)
        assert re.fullmatch(
            rf'convx {command}: error: this command needs (pillow|matplotlib): pip install "convx\[demo\]"\n', error
        )

    def test_info_needs_nothing(self, capsys):
        assert main(["info"]) == 0
        assert convx.__version__ in capsys.readouterr().out


class TestDemo:
    def test_shipped_photograph(self, tmp_path, capsys):
        picture = tmp_path / "new" / "stages.png"
        assert main(["demo", "--output", str(picture)]) == 0
        with Image.open(picture) as image:
            assert min(image.size) > 1500
        text = capsys.readouterr().out
        for stage, shape in (
            ("grey values", "1 x 427 x 640"),
            ("convolution, zero border", "3 x 427 x 640"),
            ("convolution, valid border", "3 x 425 x 638"),
            ("ReLU", "3 x 427 x 640"),
            ("max-pool 2 x 2", "3 x 213 x 320"),
        ):
            assert re.search(rf"{stage} +. +{shape} ", text), stage
        assert text.splitlines()[-1] == f"wrote {picture}"

    def test_stages_are_those_of_the_reference(self):
        grey = demo.to_grey(demo.shipped()[1])[:40, :50]
        assert 0 <= grey.min() < grey.max() <= 1
        zero, valid, positive, pooled = (stage.maps for stage in demo.pipeline(grey))
        weight = np.array(list(demo.KERNELS.values()), np.float64)[:, None]
        expected = reference.conv2d(grey[None].astype(np.float64), weight, padding=1)
        # 9 products of numbers up to 4, each rounded to float32
        np.testing.assert_allclose(zero, expected, atol=9 * 4 * 2**-24)
        # the two borders differ in the frame of one pixel alone
        np.testing.assert_allclose(valid, expected[:, 1:-1, 1:-1], atol=9 * 4 * 2**-24)
        np.testing.assert_array_equal(positive, np.maximum(zero, 0))
        np.testing.assert_array_equal(pooled, positive.reshape(3, 20, 2, 25, 2).max(axis=(2, 4)))

    def test_kernels_find_what_their_names_say(self):
        horizontal = np.zeros((9, 9), np.float32)
        horizontal[4:] = 1
        for image, answering in ((horizontal, "Sobel, horizontal edges"), (horizontal.T, "Sobel, vertical edges")):
            valid = dict(zip(demo.KERNELS, demo.pipeline(np.ascontiguousarray(image))[1].maps, strict=True))
            for name in ("Sobel, horizontal edges", "Sobel, vertical edges"):
                assert valid[name].max() == (4 if name == answering else 0)

    @pytest.mark.parametrize(
        ("name", "pixels"),
        [
            ("photograph.jpg", np.full((31, 50, 3), (255, 0, 0), np.uint8)),
            ("grey.png", np.linspace(0, 255, 30 * 40, dtype=np.uint8).reshape(30, 40)),
            ("deep.png", np.linspace(0, 65535, 30 * 40, dtype=np.uint16).reshape(30, 40)),
            ("float.tif", np.linspace(-7, 9, 30 * 40, dtype=np.float32).reshape(30, 40)),
            ("smallest.png", np.zeros((3, 3), np.uint8)),
            ("wide.gif", np.zeros((4, 200), np.uint8)),
        ],
    )
    def test_image_of_the_user(self, name, pixels, tmp_path, capsys):
        Image.fromarray(pixels).save(tmp_path / name)
        grey = demo.to_grey(demo.read(tmp_path / name))
        assert grey.shape == pixels.shape[:2]
        if name == "photograph.jpg":
            np.testing.assert_allclose(grey, 0.299, atol=2 / 255)  # the luma of red, and JPEG
        elif pixels.max() > pixels.min():
            expected = np.linspace(0, 1, pixels.size).reshape(pixels.shape)
            np.testing.assert_allclose(grey, expected, atol=1 / 255)
        assert main(["demo", "--image", str(tmp_path / name), "--output", str(tmp_path / "stages")]) == 0
        with Image.open(tmp_path / "stages.png") as image:
            image.load()
        assert f"{name}: 3 kernels" in capsys.readouterr().out

    def test_orientation_of_a_camera(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held upright: the picture is to be turned by 90 degrees
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
        assert demo.read(tmp_path / "turned.jpg").shape == (30, 20, 3)

    def test_files_that_are_no_photographs(self, tmp_path, capsys):
        text, cut, thin = tmp_path / "text.png", tmp_path / "cut.jpg", tmp_path / "thin.png"
        text.write_text("hello")
        noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
        Image.fromarray(noise).save(cut)
        cut.write_bytes(cut.read_bytes()[:2000])
        Image.fromarray(noise[:2]).save(thin)
        for file, message in (
            (tmp_path / "missing.png", rf"there is no file {tmp_path}/missing\.png"),
            (text, rf"{text} is not an image that can be read"),
            (cut, rf"cannot read {cut}: image file is truncated .*"),
            (tmp_path, rf"cannot read {tmp_path}: Is a directory"),
            (thin, r"thin\.png is 2 x 80 pixels, the kernels need at least 3 x 3"),
        ):
            error = failure(capsys, "demo", "--image", file, "--output", tmp_path / "never.png")
            assert re.fullmatch(f"convx demo: error: {message}\n", error)
        assert not (tmp_path / "never.png").exists()

    def test_pictures_that_cannot_be_written(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        (tmp_path / "folder.png").mkdir()
        for output, message in (
            (tmp_path / "stages.xyz", "its format is not one of .*png.*"),
            (tmp_path / "file" / "stages.png", "cannot create the folder .*file: .+"),
            (tmp_path / "folder.png", r"cannot write .*folder\.png: it is a folder"),
        ):
            assert re.search(message, failure(capsys, "demo", "--output", output))


class TestTrain:
    def test_reaches_98_percent_and_writes_everything(self, tmp_path, capsys):
        saved = tmp_path / "kept" / "model.npz"
        assert main(["train", "--output-dir", str(tmp_path / "pictures"), "--save", str(saved)]) == 0
        text = capsys.readouterr().out
        percent, right, count = re.search(r"held-out accuracy ([\d.]+)%: (\d+) of (\d+) digits", text).groups()
        assert float(percent) >= 98
        rows = re.findall(r"^│ +(\d) │ +(\d+) │ +(\d+) │ +([\d.]+)% │", text, re.M)
        assert [int(row[0]) for row in rows] == list(range(10))
        assert sum(int(row[1]) for row in rows) == int(count) == 359
        assert sum(int(row[2]) for row in rows) == int(right)
        for name in ("loss.png", "kernels.png", "feature-maps.png"):
            with Image.open(tmp_path / "pictures" / name) as image:
                assert min(image.size) > 500

        network = train.build(np.random.default_rng(99))
        network.load(saved)
        digits = train.load(np.random.default_rng(0))
        answers = network(digits.test_images).argmax(axis=1)
        assert int((answers == digits.test_labels).sum()) == int(right)

    def test_digits(self):
        digits = train.load(np.random.default_rng(3))
        assert digits.train_images.shape == (1438, 1, 8, 8)
        assert digits.test_images.shape == (359, 1, 8, 8)
        assert digits.train_images.min() == 0
        assert digits.train_images.max() == 1
        shares = np.bincount(digits.test_labels) / (np.bincount(digits.test_labels) + np.bincount(digits.train_labels))
        np.testing.assert_allclose(shares, 0.2, atol=0.003)
        held_out = {image.tobytes() for image in digits.test_images}
        assert not any(image.tobytes() in held_out for image in digits.train_images)

    def test_shifted_images_keep_their_pixels(self):
        rng = np.random.default_rng(4)
        images = np.zeros((2000, 1, 8, 8), np.float32)
        images[:, 0, 3, 5] = 7
        moved = train.shifted(images, rng)
        rows, columns = np.nonzero(moved[:, 0])[1:]
        np.testing.assert_array_equal(moved.sum(axis=(1, 2, 3)), 7)
        # 2000 draws: the standard deviation of each share is 1 %
        for place, at in ((rows, 3), (columns, 5)):
            for step, share in ((-1, 0.15), (0, 0.7), (1, 0.15)):
                assert (place == at + step).mean() == pytest.approx(share, abs=0.05)

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_the_same_bits_for_a_seed_and_any_number_of_threads(self, optimizer):
        runs = []
        for threads, seed in ((1, 5), (2, 5), (3, 5), (2, 6)):
            convx.set_num_threads(threads)
            rng = np.random.default_rng(seed)
            digits, network = train.load(rng), train.build(rng)
            options = Namespace(epochs=2, batch_size=64, optimizer=optimizer, lr=None)
            losses, _ = train.fit(network, digits, options, rng, Console(file=io.StringIO()))
            runs.append({"losses": losses, **network.state_dict()})
        for name, first in runs[0].items():
            np.testing.assert_array_equal(runs[1][name], first)
            np.testing.assert_array_equal(runs[2][name], first)
            assert not np.array_equal(runs[3][name], first)

    def test_a_log_file_gets_one_plain_line_for_each_epoch(self, tmp_path):
        command = [sys.executable, "-m", "convx", "train", "--epochs", "2", "--output-dir", str(tmp_path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "\x1b" not in text
        assert "\r" not in text
        lines = [line for line in text.splitlines() if line.startswith("epoch ")]
        pattern = r"epoch (\d)/2  loss \d\.\d{4}  held-out +\d+\.\d\d%"
        assert [re.fullmatch(pattern, line).group(1) for line in lines] == ["1", "2"]

    def test_a_terminal_gets_a_bar(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm-256color")
        terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
        rng = np.random.default_rng(0)
        options = Namespace(epochs=2, batch_size=64, optimizer="adam", lr=None)
        losses, accuracies = train.fit(train.build(rng), train.load(rng), options, rng, terminal)
        assert losses.shape == (2, 23)
        text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.file.getvalue())
        last = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]
        assert re.search(rf"epoch 2/2 .*100% .*loss {losses[1].mean():.4f} .*held-out +{accuracies[1]:.2%}", last)

    def test_a_learning_rate_that_is_too_high(self, tmp_path, capsys):
        error = failure(capsys, "train", "--optimizer", "sgd", "--lr", "1e9", "--output-dir", tmp_path)
        assert re.search(r"the loss is (nan|inf) in epoch 1: try a --lr below 1e\+09", error)

    def test_what_cannot_be_written_is_known_before_training(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        error = failure(capsys, "train", "--output-dir", tmp_path / "file" / "pictures")
        assert "cannot create the folder" in error
        error = failure(capsys, "train", "--output-dir", tmp_path, "--save", tmp_path)
        assert error == f"convx train: error: cannot write {tmp_path}: it is a folder\n"
        error = failure(capsys, "train", "--output-dir", tmp_path, "--batch-size", "2000")
        assert "--batch-size is 2000, there are 1438 training digits" in error

    def test_interrupt(self, tmp_path, capsys, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(nn.CrossEntropyLoss, "forward", interrupt)
        assert main(["train", "--output-dir", str(tmp_path)]) == 130
        assert capsys.readouterr().err == "convx train: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--epochs", "0"], "argument --epochs: 0 is below 1"),
        (["train", "--epochs", "many"], "argument --epochs: 'many' is not a whole number"),
        (["train", "--batch-size", "-3"], "argument --batch-size: -3 is below 1"),
        (["train", "--lr", "0"], "argument --lr: 0 is not a finite number above 0"),
        (["train", "--lr", "nan"], "argument --lr: nan is not a finite number above 0"),
        (["train", "--lr", "fast"], "argument --lr: 'fast' is not a number"),
        (["train", "--optimizer", "lion"], "argument --optimizer: invalid choice: 'lion'"),
        (["train", "--seed", "-1"], "argument --seed: -1 is below 0"),
        (["demo", "--picture", "x"], "unrecognized arguments: --picture x"),
    ],
)
def test_wrong_options_end_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
