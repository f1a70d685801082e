"""``python -m convx``: its commands on real input, their files, and their messages for bad input."""

import io
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import zlib
from argparse import Namespace

import numpy as np
import pytest

import convx
from convx import _cli, _cpu, nn, reference
from convx._cli import main
from convx._cli.errors import CommandError, prepare_file, write_file

demo = pytest.importorskip("convx._cli.demo", reason="needs the extra demo", exc_type=ModuleNotFoundError)
train = pytest.importorskip("convx._cli.train", reason="needs the extra demo", exc_type=ModuleNotFoundError)
Image = pytest.importorskip("PIL.Image")
Console = pytest.importorskip("convx._cli.console", reason="needs the extra demo", exc_type=ModuleNotFoundError).Console


def failure(capsys, *arguments):
    """Run a command that must fail; return its message, one line on stderr."""
    assert main(list(map(str, arguments))) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def photograph(tmp_path, monkeypatch):
    """A small photograph, photo.png, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save("photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def quick(monkeypatch):
    """Let the commands write an empty figure, for tests that do not depend on its contents."""
    monkeypatch.setattr(demo.pictures, "pipeline", lambda *_: demo.pictures.Figure((1, 1)))


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
    """Hide the packages of the extra demo, and unload the modules that use them."""
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
            assert min(image.size) > 1400
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
        exif[0x0112] = 6  # an upright camera: the picture needs a rotation by 90 degrees
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

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16", "palette, alpha"])
    @pytest.mark.filterwarnings("ignore:.*I;16:DeprecationWarning")
    def test_modes(self, mode, photograph):
        with Image.open(photograph) as image:
            if mode == "palette, alpha":
                image = image.quantize(7)
                image.save("photo.gif", transparency=3)
            else:
                (image.convert("I") if mode == "I;16" else image).convert(mode).save("photo.tif")
        grey = demo.to_grey(demo.read(next(photograph.parent.glob("photo.[gt]i*"))))
        assert grey.shape == (20, 30)
        assert 0 <= grey.min() < grey.max() <= 1

    def test_alpha_is_seen_on_white(self, tmp_path):
        Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "clear.png")
        assert demo.read(tmp_path / "clear.png").min() == 255

    def test_the_first_of_several_frames(self, tmp_path):
        first, *others = (Image.fromarray(np.full((4, 5), level, np.uint8)) for level in (10, 90, 200))
        first.save(tmp_path / "moving.gif", save_all=True, append_images=others)
        assert (demo.read(tmp_path / "moving.gif") == 10).all()

    @pytest.mark.parametrize(
        ("values", "ends"),
        [([3e38, -3e38], [1, 0]), ([np.nan, np.inf, 2, 4], [0, 0, 0, 1]), ([7, 7], [0, 0]), ([np.nan, 5], [0, 0])],
    )
    def test_floats_without_bounds(self, values, ends, tmp_path):
        pixels = np.tile(np.float32(values), (3, 3))
        Image.fromarray(pixels).save(tmp_path / "float.tif")
        np.testing.assert_array_equal(demo.to_grey(demo.read(tmp_path / "float.tif"))[0, : len(values)], ends)

    def test_no_finite_pixel(self, tmp_path, capsys):
        Image.fromarray(np.full((3, 3), np.nan, np.float32)).save(tmp_path / "nan.tif")
        error = failure(capsys, "demo", "--image", tmp_path / "nan.tif", "--output", tmp_path / "never.png")
        assert "no pixel that is a finite number" in error

    @pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga", "jp2", "dds", "avif"])
    def test_damaged_files(self, suffix, photograph, capfd):
        """A damaged file gives pixels or one CommandError, and no message of a library."""
        path = photograph.with_suffix(f".{suffix}")
        try:
            with Image.open(photograph) as image:
                image.save(path, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
        except (KeyError, OSError, ValueError) as error:
            pytest.skip(f"this Pillow cannot write {suffix}: {error}")
        whole, rng, failed = path.read_bytes(), np.random.default_rng(1), 0
        for _ in range(60):
            damaged = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.5 else whole)
            for at in rng.integers(max(1, min(300, len(damaged))), size=2)[: len(damaged)]:
                damaged[at] = rng.choice([0, 1, 127, 255])
            path.write_bytes(damaged)
            try:
                demo.read(path)
            except (CommandError, MemoryError):
                failed += 1
        assert failed
        assert capfd.readouterr().err == ""

    def test_a_bomb(self, tmp_path, capsys):
        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
        error = failure(capsys, "demo", "--image", tmp_path / "bomb.png", "--output", tmp_path / "never.png")
        assert error.startswith(f"convx demo: error: {tmp_path}/bomb.png is too large: Image size (3600000000 pixels)")

    @pytest.mark.parametrize(
        "output", ["photo.png", "./photo.png", "photo", "folder/../photo.png", "link.png", "hard.png", "{}"]
    )
    def test_the_photograph_is_not_overwritten(self, output, photograph, capsys):
        before = photograph.read_bytes()
        (photograph.parent / "folder").mkdir()
        os.symlink("photo.png", "link.png")
        os.link("photo.png", "hard.png")
        for image in ("photo.png", "link.png", "hard.png"):
            error = failure(capsys, "demo", "--image", image, "--output", output.format(photograph))
            assert re.search(rf"cannot write .*: it is the same file as {image}\n", error)
        assert photograph.read_bytes() == before

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ("", "cannot write .: it is a folder"),
            (".", "cannot write .: it is a folder"),
            ("/", "cannot write /: it is a folder"),
            ("folder", "cannot write folder: it is a folder"),
            ("a" * 300 + ".png", "cannot write a+.png: File name too long"),
            ("a" * 300 + "/x.png", "cannot create the folder a+: File name too long"),
            ("/proc/x.png", "cannot write /proc/x.png: .+"),
            ("dangling.png", "cannot write dangling.png: No such file or directory"),
            ("loop.png", "cannot write loop.png: Too many levels of symbolic links"),
            ("x.pgf", "cannot write x.pgf: its format is not one of .*"),
            ("photo.png/x.png", "cannot create the folder photo.png: File exists"),
        ],
    )
    def test_outputs_that_are_no_place(self, output, message, photograph, capsys):
        (photograph.parent / "folder").mkdir()
        os.symlink("nowhere/x.png", "dangling.png")
        os.symlink("loop.png", "loop.png")
        before = sorted(os.listdir())
        error = failure(capsys, "demo", "--image", "photo.png", "--output", output)
        assert re.fullmatch(f"convx demo: error: {message}\n", error)
        assert sorted(os.listdir()) == before

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("[red]x[", "[red]x["),
            ("ünï 图", "ünï 图"),
            ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
            (os.fsdecode(b"\xff"), r"\udcff"),
            ("-x", "-x"),
            ("$x$ {0} %s", "$x$ {0} %s"),
        ],
    )
    @pytest.mark.usefixtures("quick")
    def test_names(self, name, shown, photograph, capsys, monkeypatch):
        """A report has the name of its file, even where a terminal or Rich would interpret it."""
        monkeypatch.setenv("COLUMNS", "200")
        os.mkdir(name)
        shutil.copy(photograph, f"{name}/red].png")
        assert main(["demo", f"--image={name}/red].png", f"--output={name}/out].png"]) == 0
        text = capsys.readouterr().out
        assert text.splitlines()[-1] == f"wrote {shown}/out].png"
        assert text.splitlines()[0].startswith("red].png: 3 kernels")
        assert failure(capsys, "demo", f"--image={name}") == f"convx demo: error: cannot read {shown}: Is a directory\n"

    @pytest.mark.parametrize("columns", [0, 1, 40, 80])
    @pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR", "TERM"])
    @pytest.mark.usefixtures("quick", "photograph")
    def test_terminals(self, columns, variable, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv(variable, {"TERM": "dumb"}.get(variable, "1"))
        assert main(["demo", "--image", "photo.png", "--output", "stages.png"]) == 0
        text = capsys.readouterr().out
        assert "wrote stages.png" in text
        assert "time" in text
        assert "…" not in text  # nothing is cut
        assert ("\x1b" in text) == (variable == "FORCE_COLOR")

    @pytest.mark.parametrize("shape", [(2100, 1500), (3, 5000), (5000, 3), (961, 960)])
    def test_a_large_photograph_is_drawn_small(self, shape):
        """Matplotlib gets no image larger than the picture, since it takes 1.5 GB for each of 24 million pixels."""
        rng = np.random.default_rng(0)
        colours, grey = rng.integers(0, 255, (*shape, 3), np.uint8), rng.random(shape, np.float32)
        stages = [(name, np.stack([grey] * 3)) for name in ("a, zero border", "b, valid border", "c", "d")]
        figure = demo.pictures.pipeline(colours, grey, demo.KERNELS, stages)
        drawn = [image.get_array() for axes in figure.axes for image in axes.images]
        assert len(drawn) == 4 + 3 * 5
        for each in drawn:
            assert max(each.shape[:2]) <= demo.pictures.SHOWN
        assert drawn[1].mean() == pytest.approx(grey.mean(), abs=0.01)
        titles = [axes.get_title() for axes in figure.axes]
        assert sum(f"{shape[0]} × {shape[1]}" in title for title in titles) == 2 + 3 * 4

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
        once = ("--batch-size", "1438", "--epochs", "1", "--lr", "1e30", "--output-dir", tmp_path / "pictures")
        error = failure(capsys, "train", "--optimizer", "sgd", *once)
        assert error == "convx train: error: scores are not finite in epoch 1: try a --lr below 1e+30\n"
        assert not list((tmp_path / "pictures").glob("*.png"))

    def test_what_cannot_be_written_is_known_before_training(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        error = failure(capsys, "train", "--output-dir", tmp_path / "file" / "pictures")
        assert "cannot create the folder" in error
        error = failure(capsys, "train", "--output-dir", tmp_path, "--save", tmp_path)
        assert error == f"convx train: error: cannot write {tmp_path}: it is a folder\n"
        error = failure(capsys, "train", "--output-dir", tmp_path, "--batch-size", "2000")
        assert "--batch-size is 2000, there are 1438 training digits" in error

    @pytest.mark.parametrize(
        "save", ["loss.png", "./kernels.png", "../out/feature-maps.png", "link.npz", "{}/loss.png"]
    )
    def test_the_parameters_take_no_place_of_a_picture(self, save, tmp_path, capsys, monkeypatch):
        (tmp_path / "out").mkdir()
        monkeypatch.chdir(tmp_path / "out")
        os.symlink("loss.png", "link.npz")
        error = failure(capsys, "train", "--output-dir", ".", "--save", save.format(tmp_path / "out"))
        assert re.search(r"cannot write .*: it is the same file as (loss|kernels|feature-maps)\.png\n", error)

    def test_a_picture_that_is_a_folder(self, tmp_path, capsys):
        (tmp_path / "kernels.png").mkdir()
        error = failure(capsys, "train", "--output-dir", tmp_path)
        assert error == f"convx train: error: cannot write {tmp_path}/kernels.png: it is a folder\n"

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    @pytest.mark.parametrize("rate", ["1e39", "1e308"])
    def test_a_learning_rate_beyond_float32(self, optimizer, rate, tmp_path, capsys):
        error = failure(capsys, "train", "--optimizer", optimizer, "--lr", rate, "--output-dir", tmp_path)
        assert "try a --lr below" in error

    @pytest.mark.parametrize("epochs", [30, 10**18, 10**400], ids=["30", "10**18", "10**400"])
    def test_interrupt(self, epochs, tmp_path, capsys, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(nn.CrossEntropyLoss, "forward", interrupt)
        assert main(["train", "--epochs", str(epochs), "--output-dir", str(tmp_path)]) == 130
        assert capsys.readouterr().err == "convx train: interrupted\n"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_that_matplotlib_replaced(self, number, tmp_path, capsys, monkeypatch):
        def draw(*_):
            try:
                _cli.end(number, None)
            except KeyboardInterrupt:
                raise ValueError("Invalid affine transformation matrix") from None

        monkeypatch.setattr(_cli, "_signals", [])
        monkeypatch.setattr(train, "draw", draw)
        assert main(["train", "--epochs", "1", "--output-dir", str(tmp_path)]) == 128 + number
        assert capsys.readouterr().err == "convx train: interrupted\n"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_while_it_trains(self, number, tmp_path):
        # A background job ignores some of them, and a child inherits that.
        heed = f"import os, signal, sys; signal.signal({number:d}, signal.SIG_DFL); "
        heed += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        command = [sys.executable, "-c", heed, "-m", "convx", "train", "--epochs", "1000000", "--output-dir"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, str(tmp_path)], **pipes) as process:
            try:
                assert process.stdout.readline().startswith("epoch ")
                process.send_signal(number)
                error = process.communicate(timeout=60)[1]
            finally:
                process.kill()
        assert (process.returncode, error) == (128 + number, "convx train: interrupted\n")
        assert not list(tmp_path.iterdir())


class TestFiles:
    @pytest.mark.parametrize(
        ("error", "raised"),
        [(OSError(28, "No space left on device"), CommandError), (KeyboardInterrupt(), None), (MemoryError(), None)],
    )
    def test_what_was_there_stays_until_all_is_written(self, error, raised, tmp_path):
        def write(place):
            place.write_text("half")
            raise error

        (tmp_path / "old").write_text("old")
        for name in ("old", "new"):
            with pytest.raises(raised or type(error)):
                write_file(tmp_path / name, write)
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
        assert (tmp_path / "old").read_text() == "old"

    def test_links_and_modes(self, tmp_path):
        old, link, other = tmp_path / "old", tmp_path / "link", tmp_path / "other"
        old.write_text("old")
        old.chmod(0o640)
        link.symlink_to("old")
        os.link(old, other)
        write_file(link, lambda place: place.write_text("new"))
        assert link.is_symlink()
        assert (old.read_text(), other.read_text()) == ("new", "old")
        assert stat.S_IMODE(old.stat().st_mode) == 0o640
        before = os.umask(0o027)
        write_file(tmp_path / "fresh", lambda place: place.write_text("new"))
        os.umask(before)
        assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640

    def test_a_pipe_is_written_in_place(self, tmp_path):
        reader, writer = os.pipe()
        path = tmp_path / "pipe"
        path.symlink_to(f"/proc/self/fd/{writer}")
        prepare_file(path)
        write_file(path, lambda place: place.write_text("through"))
        assert os.read(reader, 99) == b"through"
        os.close(reader)
        os.close(writer)

    @pytest.mark.parametrize("protected", ["file", "folder"])
    def test_write_protection(self, protected, tmp_path):
        folder, file = tmp_path / "folder", tmp_path / "folder" / "file"
        folder.mkdir()
        file.write_text("old")
        place, mode = (file, 0o444) if protected == "file" else (folder, 0o555)
        place.chmod(mode)
        if os.access(place, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(CommandError, match=r"it is write-protected|Permission denied"):
            prepare_file(file)
        folder.chmod(0o755)


def shell(line, **environment):
    """Run a shell command in which $convx is the command line, with warnings as errors."""
    environment = os.environ | {"convx": f"{sys.executable} -W error -m convx"} | environment
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)


class TestStreams:
    @pytest.mark.parametrize("command", ["info", "info --json", "--help", "train --help"])
    @pytest.mark.parametrize(
        ("streams", "status", "error"),
        [
            ("| true; exit $PIPESTATUS", 141, ""),
            ("> /dev/full", 1, r"convx(.*): error: cannot write to the standard output: No space left on device\n"),
            (">&-", 0, ""),
            (">&- 2>&- <&-", 0, ""),
        ],
    )
    def test_standard_output(self, command, streams, status, error):
        ended = shell(f"$convx {command} {streams}")
        assert ended.returncode == status
        assert re.fullmatch(error, ended.stderr)

    @pytest.mark.parametrize("command", ["demo --image photo.png --output out", "train --epochs 2 --output-dir out"])
    def test_a_reader_that_goes_away_takes_no_picture_along(self, command, photograph):
        ended = shell(f"$convx {command} | true; exit $PIPESTATUS")
        assert (ended.returncode, ended.stderr) == (141, "")
        for path in ("out/loss.png", "out/kernels.png", "out/feature-maps.png") if "train" in command else ("out.png",):
            with Image.open(path) as image:
                image.load()

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    @pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
    @pytest.mark.usefixtures("quick", "photograph")
    def test_encodings(self, encoding, errors, monkeypatch):
        stream = io.TextIOWrapper(io.BytesIO(), encoding, errors)
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["demo", "--image", "photo.png", "--output", "図.png"]) == 0
        last = stream.buffer.getvalue().splitlines()[-1]
        assert last == ("wrote 図.png".encode() if encoding == "utf-8" else b"wrote \\u56f3.png")


class TestSurroundings:
    @pytest.mark.parametrize(
        ("variable", "message"),
        [
            ("CONVX_ISA=none", "CONVX_ISA=none: this machine can run: .*"),
            ("CONVX_ISA=$'a\\nb'", r"CONVX_ISA=a\\nb: this machine can run: .*"),
            ("CONVX_ISA=$'\\xff'", r"CONVX_ISA=\\udcff: this machine can run: .*"),
            ("CONVX_ALGORITHM=fast", "CONVX_ALGORITHM=fast: expected auto or direct"),
        ],
    )
    def test_variables_that_mean_nothing(self, variable, message):
        ended = shell(f"{variable} $convx info")
        assert ended.returncode == 1
        assert re.fullmatch(f"convx info: error: {message}\n", ended.stderr)

    @pytest.mark.parametrize("threads", ["0", "-1", "many", "99999999999999999999", ""])
    def test_numbers_of_threads_that_are_none(self, threads):
        ended = shell("$convx info", CONVX_NUM_THREADS=threads)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert re.search(r"^threads +\d+ \((?!CONVX)", ended.stdout, re.M)

    def test_matplotlib_as_somebody_else_set_it(self, photograph):
        (photograph.parent / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: 9\n")
        nowhere = {"MPLCONFIGDIR": "/proc/none", "HOME": "/proc/none"}
        ended = shell("$convx demo --image photo.png --output stages.png", MPLBACKEND="none", **nowhere)
        assert (ended.returncode, ended.stderr) == (0, "")
        with Image.open("stages.png") as image:
            assert image.width == 2000

    @pytest.mark.parametrize("command", ["demo --image photo.png --output", "train --epochs 1 --save"])
    def test_a_full_disk(self, command, photograph):
        (photograph.parent / "old.png").write_text("old")
        ended = shell(f"ulimit -f 8; $convx {command} old.png")
        assert ended.returncode == 1
        assert re.fullmatch(r"convx \w+: error: cannot write old\.png: File too large\n", ended.stderr)
        assert (photograph.parent / "old.png").read_text() == "old"
        assert not list(photograph.parent.glob(".convx*"))

    @pytest.mark.parametrize("command", ["demo", "train"])
    def test_a_folder_that_is_gone(self, command, tmp_path):
        ended = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; $convx {command}")
        assert ended.returncode == 1
        assert re.fullmatch(r"convx \w+: error: cannot .* convx-(demo\.png|train): No such file.*\n", ended.stderr)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (ImportError("scipy.so: failed to map\nsegment"), r"scipy.so: failed to map\nsegment"),
            (OSError("no writable cache directory"), "no writable cache directory"),
            (PermissionError(13, "Permission denied", "fonts"), "[Errno 13] Permission denied: 'fonts'"),
            (MemoryError(), "there is not enough memory"),
        ],
    )
    def test_what_a_library_raises(self, error, message, capsys, monkeypatch):
        def load(_):
            raise error

        monkeypatch.setattr(train, "load_digits", lambda: load(None))
        monkeypatch.setattr(train, "prepare_file", lambda *_: None)
        assert failure(capsys, "train") == f"convx train: error: {message}\n"


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
        (["demo", "a\nb\x1b[31m"], r"unrecognized arguments: a\nb\x1b[31m"),
        (["demo", "--image", "-x.png"], "argument --image: expected one argument"),
        (["train", "--epochs", "9" * 5000], "is not a whole number"),
        (["train", "--seed", "1.5"], "argument --seed: '1.5' is not a whole number"),
        (["train", "--lr=-inf"], "argument --lr: -inf is not a finite number above 0"),
    ],
)
def test_wrong_options_end_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
