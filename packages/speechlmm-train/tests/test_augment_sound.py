"""What each augmentation does to sound, against independent computations."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.augmentation import augmentations
from speechlmm_train.augment.gain.config import GainAugmentationConfig
from speechlmm_train.augment.levels import active_power, power
from speechlmm_train.augment.noise.config import NoiseAugmentationConfig
from speechlmm_train.augment.reverberation.config import ReverberationAugmentationConfig
from speechlmm_train.augment.reverberation.room import fast_length, reverberate
from speechlmm_train.augment.spec_augment.config import SpecAugmentationConfig
from speechlmm_train.augment.spec_augment.masking import frequency_band, mask
from speechlmm_train.augment.speed.change import change_speed, changed_length
from speechlmm_train.augment.speed.config import SpeedAugmentationConfig
from speechlmm_train.augment.telephone.coding import ENCODERS
from speechlmm_train.augment.telephone.config import TelephoneAugmentationConfig
from speechlmm_train.augment.telephone.line import band_limited, companded

RATE = 16_000
NAMES = ("speed", "gain", "noise", "reverberation", "spec_augment", "telephone")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(num: int, seed: int = 0, amplitude: float = 0.1) -> np.ndarray:
    return (amplitude * generator(seed).standard_normal(num)).astype(np.float32)


def tone(frequency: float, num: int = RATE, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(num) / RATE)).astype(np.float32)


def amplitude_of(values: np.ndarray, frequency: float) -> float:
    turn = np.exp(-2j * np.pi * frequency * np.arange(len(values)) / RATE)
    return 2 * abs(np.dot(values, turn)) / len(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, a long sound and a short one, and rooms: a plain delay, and a tail of two seconds."""
    root = tmp_path_factory.mktemp("sounds")
    (root / "noise" / "deep").mkdir(parents=True)
    (root / "rooms").mkdir()
    soundfile.write(root / "noise" / "long.wav", noise(5 * RATE, 1), RATE)
    soundfile.write(root / "noise" / "deep" / "short.flac", noise(3000, 2), 8000)
    delay = np.zeros((800, 2), np.float32)
    delay[300, 0] = 0.5
    delay[:, 1] = 0.1
    soundfile.write(root / "rooms" / "delay.wav", delay, RATE, subtype="FLOAT")
    return root


def configs(folder: Path) -> list:
    made = [
        augmentations.get(name)(**({"path": str(folder / where)} if where else {}))
        for name, where in zip(NAMES, ("", "", "noise", "rooms", "", ""), strict=True)
    ]
    for one in made:
        one.prepare(folder)
    return made


def test_all_are_announced() -> None:
    assert set(NAMES) <= set(augmentations.names())


@given(num=st.integers(0, 3000), rate=st.sampled_from([8000, 16000, 44100]), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_lengths_are_kept_or_within_the_bound_and_nothing_is_infinite(
    folder: Path, num: int, rate: int, seed: int
) -> None:
    for one in configs(folder):
        for samples in (noise(num, seed), np.zeros(num, np.float32), np.ones(num, np.float32)):
            out = one.apply(samples.copy(), rate, generator(seed))
            assert out.dtype == np.float32
            assert np.isfinite(out).all()
            assert len(out) <= one.max_length(num)
            if one.type != "speed":
                assert len(out) == num
            if not samples.any():
                assert not np.abs(out).max(initial=0) > 1e-3  # the A-law has no zero
            if one.type in {"gain", "noise", "reverberation"}:
                assert np.abs(out).max(initial=0) <= max(1.0, np.abs(samples).max(initial=0)) + 1e-6


def test_the_same_generator_gives_the_same_sound(folder: Path) -> None:
    for one in configs(folder):
        left, right, other = (one.apply(noise(9000), RATE, generator(seed)) for seed in (3, 3, 4))
        assert np.array_equal(left, right)
        differs = [not np.array_equal(left, one.apply(noise(9000), RATE, generator(seed))) for seed in range(9)]
        assert any(differs) or one.type == "reverberation", (one.type, other)  # there is one room


@given(num=st.integers(0, 20_000), percent=st.integers(50, 200))
def test_the_length_at_a_speed_counts_the_samples_before_the_end(num: int, percent: int) -> None:
    length = changed_length(num, Fraction(percent, 100))
    # Sample k of the result stands at k * percent / 100 samples of what is played.
    assert length == sum(1 for k in range(2 * num + 2) if k * percent < num * 100) == math.ceil(num * 100 / percent)


@given(num=st.integers(1, 20_000), factor=st.sampled_from([0.5, 0.9, 0.91, 1.0, 1.1, 1.37, 2.0]))
@settings(max_examples=30, deadline=None)
def test_speed_gives_the_length_it_promises(num: int, factor: float) -> None:
    one = SpeedAugmentationConfig(factors=(factor,))
    assert len(one.apply(noise(num), RATE, generator())) == one.max_length(num)


@pytest.mark.parametrize("percent", [90, 110])
def test_speed_moves_a_tone_and_keeps_its_amplitude(percent: int) -> None:
    out = change_speed(tone(1000, 2 * RATE), Fraction(percent, 100))
    expected = tone(10 * percent, len(out))
    np.testing.assert_allclose(out[2000:-2000], expected[2000:-2000], atol=2e-3)


def test_speeds_are_drawn_evenly() -> None:
    one = SpeedAugmentationConfig()
    lengths = [len(one.apply(noise(990), RATE, generator(seed))) for seed in range(300)]
    counts = [lengths.count(length) for length in (1100, 990, 900)]
    assert sum(counts) == 300
    assert all(70 <= count <= 130 for count in counts)


def test_gain_is_even_in_decibels_and_stops_at_full_scale() -> None:
    one = GainAugmentationConfig()
    quiet = noise(1000, amplitude=0.01)
    gains = [
        10 * math.log10(power(one.apply(quiet.copy(), RATE, generator(seed))) / power(quiet)) for seed in range(500)
    ]
    assert -18.001 <= min(gains) < -17.5
    assert 5.5 < max(gains) <= 6.001
    assert np.mean(gains) == pytest.approx(-6, abs=1)
    loud = GainAugmentationConfig(gain_db=(20, 20)).apply(tone(440), RATE, generator())
    assert np.abs(loud).max() == pytest.approx(1, abs=1e-6)
    beyond = GainAugmentationConfig(gain_db=(20, 20)).apply(3 * tone(440), RATE, generator())
    np.testing.assert_array_equal(beyond, 3 * tone(440))


def test_active_level_leaves_pauses_out() -> None:
    speech = np.concatenate([tone(300), np.zeros(3 * RATE, np.float32)])
    assert active_power(speech, RATE) == pytest.approx(0.125, rel=1e-3)
    assert power(speech) == pytest.approx(0.125 / 4, rel=1e-3)
    assert active_power(np.zeros(5, np.float32), RATE) == 0


def test_noise_has_the_ratio_that_is_drawn(folder: Path) -> None:
    speech = np.concatenate([0.1 * tone(300, 2 * RATE), np.zeros(2 * RATE, np.float32)])
    ratios = []
    for seed in range(200):
        one = NoiseAugmentationConfig(path=str(folder / "noise"), snr_db=(5, 15))
        one.prepare(folder)
        added = one.apply(speech.copy(), RATE, generator(seed)) - speech
        ratios.append(10 * math.log10(0.1**2 * 0.125 / np.mean(added.astype(np.float64) ** 2)))
    assert 4.8 < min(ratios) < 6
    assert 14 < max(ratios) < 15.2
    assert np.mean(ratios) == pytest.approx(10, abs=0.6)


def test_short_noise_goes_on_and_long_noise_is_cut_anywhere(folder: Path) -> None:
    speech = 0.1 * tone(300)
    one = NoiseAugmentationConfig(path=str(folder / "noise" / "deep"), snr_db=(0, 0))
    one.prepare(folder)
    added = one.apply(speech.copy(), RATE, generator(0)) - speech
    np.testing.assert_allclose(added[:6000], added[6000:12000], atol=1e-5)  # 3000 samples at 8 kHz, over and over
    long = NoiseAugmentationConfig(path="noise/long.wav", snr_db=(0, 0))
    long.prepare(folder)
    whole, _ = soundfile.read(folder / "noise" / "long.wav", dtype="float32")
    places = set()
    for seed in range(5):
        added = long.apply(speech.copy(), RATE, generator(seed)) - speech
        match = np.correlate(whole, added, "valid")
        places.add(int(match.argmax()))
        part = whole[match.argmax() :][: len(added)]
        assert np.corrcoef(part, added)[0, 1] > 0.9999
    assert len(places) == 5


def test_a_room_is_a_convolution_with_the_direct_path_at_once() -> None:
    samples, response = noise(500), noise(120, 5) * np.exp(-np.arange(120) / 20).astype(np.float32)
    response[17] = 2.0
    out = reverberate(samples, response)
    naive = np.array(
        [sum(response[k] * samples[n + 17 - k] for k in range(120) if 0 <= n + 17 - k < 500) for n in range(500)]
    )
    naive *= np.sqrt(np.mean(samples.astype(float) ** 2) / np.mean(naive**2))
    np.testing.assert_allclose(out, naive, atol=1e-6)


def test_a_room_of_one_echo_changes_nothing_and_takes_the_first_channel(folder: Path) -> None:
    one = ReverberationAugmentationConfig(path="rooms")
    one.prepare(folder)
    np.testing.assert_allclose(one.apply(noise(5000), RATE, generator()), noise(5000), atol=1e-6)


def test_a_folder_that_is_missing_is_named_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        NoiseAugmentationConfig(path="../musan").prepare(tmp_path / "walk")
    assert (
        str(caught.value) == f"{tmp_path / 'musan'}: no such folder; `path` is to name a folder of noise, or one file"
    )


def test_rooms_in_any_format_are_read(tmp_path: Path) -> None:
    delay = np.zeros(RATE // 2, np.float32)
    delay[3000] = 0.9
    with av.open(str(tmp_path / "room.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(delay[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    one = ReverberationAugmentationConfig(path=".")
    one.prepare(tmp_path)
    out = one.apply(tone(440), RATE, generator())
    np.testing.assert_allclose(out[2000:-2000], tone(440)[2000:-2000], atol=0.05)


def test_rooms_that_cannot_be_used_are_all_found_before_training(tmp_path: Path) -> None:
    silent = np.zeros((800, 2), np.float32)
    silent[:, 1] = 0.5  # the channel that is not used
    soundfile.write(tmp_path / "silent.wav", silent, RATE)
    soundfile.write(tmp_path / "long.wav", noise(11 * RATE), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "cut.flac", noise(RATE), RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:9000])
    with pytest.raises(DataError) as caught:
        ReverberationAugmentationConfig(path=".").prepare(tmp_path)
    for words in ("silent.wav: the impulse response is silent", "long.wav: 11.0 s are too long", "nan.wav", "cut.flac"):
        assert words in str(caught.value)


def test_noise_that_is_silent_where_it_is_cut_is_drawn_again(tmp_path: Path) -> None:
    mostly_silent = np.zeros(10 * RATE, np.float32)
    mostly_silent[: 2 * RATE] = noise(2 * RATE)
    soundfile.write(tmp_path / "n.wav", mostly_silent, RATE, subtype="FLOAT")
    one = NoiseAugmentationConfig(path="n.wav")
    one.prepare(tmp_path)
    outs = [one.apply(tone(440), RATE, generator(seed)) for seed in range(40)]
    assert not any(np.array_equal(out, tone(440)) for out in outs)
    again = one.apply(tone(440), RATE, generator(7))
    np.testing.assert_array_equal(again, outs[7])
    soundfile.write(tmp_path / "none.wav", np.zeros(RATE), RATE)
    only = NoiseAugmentationConfig(path="none.wav")
    only.prepare(tmp_path)
    np.testing.assert_array_equal(only.apply(tone(440), RATE, generator()), tone(440))


@given(st.integers(1, 5000))
def test_fast_lengths(length: int) -> None:
    def smooth(number: int) -> bool:
        for prime in (2, 3, 5):
            while number % prime == 0:
                number //= prime
        return number == 1

    assert fast_length(length) == next(n for n in range(length, 2 * length + 1) if smooth(n))


def test_masks_leave_the_rest_as_it_is() -> None:
    samples = noise(3 * RATE)
    none = mask(samples, RATE, bands=[], stretches=[])
    assert none is samples
    nearly = mask(samples, RATE, bands=[(7999, 7999.5)], stretches=[])
    np.testing.assert_allclose(nearly, samples, atol=1e-6)
    out = mask(samples, RATE, bands=[], stretches=[(RATE, 2 * RATE)])
    border = round(0.032 * RATE)
    np.testing.assert_allclose(out[: RATE - border], samples[: RATE - border], atol=1e-6)
    np.testing.assert_allclose(out[2 * RATE + border :], samples[2 * RATE + border :], atol=1e-6)
    assert not out[RATE + border : 2 * RATE - border].any()


@pytest.mark.parametrize("bands", [[], [(300.0, 3000.0)]])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 70])
def test_a_stretch_is_silent_and_changes_two_milliseconds_beside_it(frames: int, bands: list) -> None:
    # Masked in the spectrogram, whose windows are longer, a stretch of 10 ms was only 7 dB softer.
    samples, first = noise(2 * RATE), 4000
    last, fade = first + frames * RATE // 100, RATE // 500
    banded = mask(samples, RATE, bands=bands, stretches=[])
    out = mask(samples, RATE, bands=bands, stretches=[(first, last)])
    assert not out[first:last].any()
    np.testing.assert_array_equal(out[: first - fade], banded[: first - fade])
    np.testing.assert_array_equal(out[last + fade :], banded[last + fade :])
    gains = mask(np.ones(RATE, np.float32), RATE, bands=[], stretches=[(first, last)])
    assert np.abs(np.diff(gains)).max() < 0.05
    assert (np.diff(gains[:last]) <= 0).all()
    assert (np.diff(gains[first:]) >= 0).all()


@given(length=st.integers(1, 400), places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 99)), max_size=4))
def test_stretches_may_overlap_and_lie_at_the_ends(length: int, places: list) -> None:
    stretches = [(first, min(first + size, length)) for first, size in places if first <= length]
    out = mask(np.ones(length, np.float32), RATE, bands=[], stretches=stretches)
    silent = {place for first, last in stretches for place in range(first, last)}
    assert {int(place) for place in np.flatnonzero(out == 0)} == silent
    for place in range(length):
        nearest = min((abs(place - other) for other in silent), default=99)
        assert (out[place] == 1) == (nearest > 32)


def test_a_band_is_taken_out_and_its_neighbours_stay() -> None:
    samples = sum(tone(f, 2 * RATE, 0.2) for f in (500, 1500, 4000))
    out = mask(samples, RATE, bands=[(1200, 1800)], stretches=[])
    middle = out[RATE // 2 : 3 * RATE // 2]
    assert amplitude_of(middle, 1500) < 0.2 * 10 ** (-40 / 20)
    assert amplitude_of(middle, 500) == pytest.approx(0.2, rel=1e-3)
    assert amplitude_of(middle, 4000) == pytest.approx(0.2, rel=1e-3)


def test_long_sound_is_masked_in_blocks_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"bands": [(1000.0, 2000.0)], "stretches": [(5000, 9000), (30_000, 31_000)]}
    whole = mask(noise(40_000), RATE, **arguments)
    monkeypatch.setattr("speechlmm_train.augment.spec_augment.masking.BLOCK_FRAMES", 7)
    np.testing.assert_allclose(mask(noise(40_000), RATE, **arguments), whole, atol=1e-6)


def test_mel_bands_are_those_of_the_formula() -> None:
    edges = [frequency_band(band, 1, RATE) for band in range(80)]
    assert edges[0][0] == pytest.approx(0, abs=1e-9)
    assert edges[-1][1] == pytest.approx(8000)
    mels = [1127.01048 * math.log(1 + high / 700) for _, high in edges]  # the same scale by natural logarithms
    np.testing.assert_allclose(np.diff(mels), mels[0], rtol=1e-5)


def test_masks_are_as_wide_as_the_policy_says() -> None:
    one = SpecAugmentationConfig(num_frequency_masks=0, num_time_masks=1)
    silent = []
    for seed in range(60):
        out = one.apply(np.ones(2 * RATE, np.float32), RATE, generator(seed))
        silent.append(int((np.abs(out) < 0.5).sum()) / RATE)
    assert max(silent) <= 0.2 * 2 + 0.032  # a fifth of two seconds
    assert 0.12 < np.mean(silent) < 0.28  # drawn evenly from 0
    strong = SpecAugmentationConfig(num_frequency_masks=2, max_frequency_bands=40, num_time_masks=0)
    spectra = [np.abs(np.fft.rfft(strong.apply(noise(RATE), RATE, generator(seed)))) for seed in range(20)]
    assert all((one < 0.05 * np.median(one)).mean() < 0.9 for one in spectra)
    assert np.mean([(one < 0.05 * np.median(one)).mean() for one in spectra]) > 0.15


@pytest.mark.parametrize(("law", "codec"), [("mu", "pcm_mulaw"), ("a", "pcm_alaw")])
def test_companding_is_that_of_ffmpeg(law: str, codec: str) -> None:
    decoder = av.CodecContext.create(codec, "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    (frame,) = decoder.decode(av.Packet(bytes(range(256))))
    levels = np.unique(frame.to_ndarray().reshape(-1).astype(np.float32) / 32768)
    samples = np.linspace(-1.2, 1.2, 4001, dtype=np.float32)
    out = companded(samples, law)
    nearest = levels[np.abs(samples[:, None] - levels[None]).argmin(axis=1)]
    assert np.isin(out, levels).all()
    np.testing.assert_allclose(np.abs(out - samples), np.abs(nearest - samples), atol=1e-6)


def test_the_line_lets_its_band_through() -> None:
    for frequency, kept in ((100, 0), (1000, 1), (3000, 1), (3700, 0), (6000, 0)):
        out = band_limited(tone(frequency, 2 * RATE), RATE, (300, 3400))[RATE // 2 : 3 * RATE // 2]
        assert amplitude_of(out, frequency) == pytest.approx(0.5 * kept, abs=2e-3)
    for law in ("mu", "a"):
        out = TelephoneAugmentationConfig(laws=(law,)).apply(tone(1000, 2 * RATE), RATE, generator())
        noise_left = out[RATE // 2 : 3 * RATE // 2] - tone(1000, 2 * RATE)[RATE // 2 : 3 * RATE // 2]
        assert 30 < 10 * math.log10(0.125 / power(noise_left)) < 45  # G.711 has some 38 dB


@pytest.mark.parametrize("codec", ["opus", "mp3", "amr", "gsm"])
def test_a_codec_keeps_length_and_place_or_says_why_not(codec: str) -> None:
    one = TelephoneAugmentationConfig(codec=codec)
    if ENCODERS[codec][0] not in av.codecs_available:
        with pytest.raises(DataError, match=f"codec '{codec}': FFmpeg's encoder '{ENCODERS[codec][0]}' is not there"):
            one.prepare(Path())
        return
    one.prepare(Path())
    chirp = np.sin(2 * np.pi * (400 + 300 * np.arange(2 * RATE) / RATE) * np.arange(2 * RATE) / RATE)
    samples = (0.3 * chirp).astype(np.float32)
    out = one.apply(samples, RATE, generator())
    assert len(out) == len(samples)
    lags = range(-800, 801)
    middle = samples[8000:24000]
    match = [float(np.dot(middle, out[8000 + lag : 24000 + lag])) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= 0.012 * RATE
    assert power(out) > 0.2 * power(samples)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("speed", {"factors": []}),
        ("speed", {"factors": [0.1]}),
        ("speed", {"factors": [1.001]}),
        ("gain", {"gain_db": [3, -3]}),
        ("noise", {"snr_db": [10, 0]}),
        ("noise", {"probability": 1.5}),
        ("spec_augment", {"max_frequency_bands": 80}),
        ("telephone", {"band_hz": [3400, 300]}),
        ("telephone", {"bit_rate": 8000}),
        ("telephone", {"laws": []}),
    ],
)
def test_what_cannot_be_is_refused(kind: str, fields: dict) -> None:
    with pytest.raises(ValidationError):
        augmentations.get(kind).model_validate({"type": kind, **fields})


def test_a_folder_that_is_missing_empty_or_damaged(tmp_path: Path) -> None:
    for kind in ("noise", "reverberation"):
        cls = augmentations.get(kind)
        with pytest.raises(DataError, match="expected `path`"):
            cls().prepare(tmp_path)
        with pytest.raises(DataError, match="no such folder"):
            cls(path="nowhere").prepare(tmp_path)
        with pytest.raises(DataError, match="holds no audio file"):
            cls(path=".").prepare(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"a\.wav"):
        NoiseAugmentationConfig(path=".").prepare(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.zeros(11 * 8000), 8000)
    with pytest.raises(DataError, match=r"11\.0 s are too long"):
        ReverberationAugmentationConfig(path=".").prepare(tmp_path)
