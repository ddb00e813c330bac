"""How far a decoder's pitch is from that of the recordings.

Shapes: B clips, T frames.
"""

from jaxtyping import Float
from torch import Tensor

from latentlm.nn.pitch import PitchTrack


def pitch_distance(pitch: Float[Tensor, "B T"], track: PitchTrack) -> Float[Tensor, "B"]:
    """Mean distance in octaves over all frames, those counting nothing that are not voiced.

    Args:
        pitch: Predicted, Hz.
        track: Of the recordings.
    """
    octaves = (pitch.log2() - track.pitch.log2()).abs()
    return (octaves * track.is_voiced).mean(dim=1)
