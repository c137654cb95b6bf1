#!/usr/bin/env bash
# How many frames an MP4 has, by PyAV, where its beginning was cut off without encoding it anew.
#
# Expected: `stream.frames` is how many frames come out: an MP4 has a table of them.
# Seen:     of a film of 50 frames cut at 1.5 s, stream.frames is 40 and 35 frames are decoded, the first of them at
#           time 0. stream.duration is that of the 35.
# Why:      a cut without encoding starts at the keyframe before it; an edit list (ISO 14496-12, 8.6.6) hides the frames
#           in between. The table counts them, the decoder drops them.
# Matters:  phones and editors write such files. Whoever makes an array of stream.frames, or numbers boxes by the table,
#           is off by what is hidden, and labels made frame by frame with another tool do not fit.
. "$(dirname "$0")/_venv.sh"
pip 'av==18.1.0' 'numpy==2.4.6'
cat > "$folder/cut.py" <<'PYTHON'
import sys

import av
import numpy as np

CUT, FPS = 1.5, 10
with av.open("film.mp4", "w") as film:
    stream = film.add_stream("libx264", rate=FPS, options={"bf": "2", "g": "10"})
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for number in range(50):
        film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * number, np.uint8))))
    film.mux(stream.encode())

with av.open("film.mp4") as film, av.open("cut.mp4", "w") as cut:  # as `ffmpeg -ss 1.5 -i film.mp4 -c copy cut.mp4`
    stream = cut.add_stream_from_template(film.streams.video[0])
    film.seek(int(CUT * av.time_base))
    for packet in film.demux(video=0):
        if packet.dts is not None:
            offset = int(CUT / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, stream
            cut.mux(packet)

with av.open("cut.mp4") as cut:
    stream = cut.streams.video[0]
    counted, length = stream.frames, float(stream.duration * stream.time_base)
    frames = list(cut.decode(video=0))
grey = int(frames[0].to_ndarray(format="rgb24")[0, 0, 0])
print(f"PyAV {av.__version__}: stream.frames {counted}, {length:.1f} s; decoded {len(frames)}")
print(f"the first at {frames[0].time:.1f} s is frame {round(grey / 5)} of the film")
sys.exit((counted, len(frames), frames[0].time, round(grey / 5)) != (40, 35, 0, 15))
PYTHON
python "$folder/cut.py"
