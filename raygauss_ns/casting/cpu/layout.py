"""Where everything lies in a thread's workspace: offsets in floats, in doubles and in integers.

Imported as a module (`from raygauss_ns.casting.cpu import layout as at`), so that a kernel reads
`load(ws, at.TRANSMITTANCE)`. Numba compiles these numbers into the kernels. A name without a remark holds one value
for each of the 16 lanes.
"""

from __future__ import annotations

from ns_support.kernels.simd import LANES
from raygauss_ns.casting.cpu.bvh import MAX_LEVELS

# ---- floats: the state of a packet -----------------------------------------------------------------------------------

ORIGIN_X, ORIGIN_Y, ORIGIN_Z, DIRECTION_X, DIRECTION_Y, DIRECTION_Z = (LANES * i for i in range(6))
LOCAL_DISTANCE = LANES * 6  # of row 0 from the packet's own origin
RAY_DISTANCE = LANES * 7  # of row 0 from the ray's origin
FIRST_ROW, END_ROW = LANES * 8, LANES * 9  # first and one past the last row that holds a sample of the lane
TRANSMITTANCE = LANES * 10
COLOR_R, COLOR_G, COLOR_B, DEPTH = (LANES * i for i in range(11, 15))
GRAD_R, GRAD_G, GRAD_B, GRAD_DEPTH = (LANES * i for i in range(15, 19))  # gradients of the outputs
REMAINING = LANES * 19  # suffix sum: output gradient times the contribution of the samples not yet passed
IDLE = LANES * 20  # 0 where the lane still marches in this slab, else infinity
SCAN = LANES * 21  # scratch space of a prefix sum over the lanes
# The cone around the packet's rays, 3 floats each: largest and least origin, inverse of the largest and of the least
# direction. Then the slab's first and last distance.
CONE = LANES * 22
CONE_NEAR, CONE_FAR = CONE + 12, CONE + 13
NEXT_DISTANCE = LANES * 23  # distances beyond the slab at which a box begins; the least of all lanes counts
STEPS, PITCHES = LANES * 24, LANES * 25  # step and pitch of each lane (adaptive step only, see `march_growing`)
DOUBLES = LANES * 26  # 64 doubles (adaptive step only); their own offsets are below
ROWS = LANES * 34

# ---- floats: a row of the slab, then a hit's projection --------------------------------------------------------------

SIGMA, EMISSION_R, EMISSION_G, EMISSION_B = (LANES * i for i in range(4))  # sigma and E = sum f c
# The backward pass overwrites the first two with P and Q: dL/df_l = P (g . c_l) + Q.
GRADIENT_FACTOR, GRADIENT_OFFSET = SIGMA, EMISSION_R
ROW_SIZE = LANES * 4

# |A (x - mu)|^2 = h2 + bb (t - t*)^2, and the rows (not rounded) at which the lane enters and leaves the support.
HIT_CLOSEST, HIT_BB, HIT_H2, HIT_ENTER, HIT_LEAVE = (LANES * i for i in range(5))
HIT_SIZE = LANES * 5
MAX_HITS = 1024
"""Hits of a slab that the backward pass finds without a second search."""

# ---- doubles, from `DOUBLES` on: distances from the rays' origins ----------------------------------------------------

LANE_START, LANE_LIMIT = 0, LANES  # where the lane's slab begins, where its ray ends
LANE_STEP = 2 * LANES  # step of the lane's slab; 0 where the lane has finished
PACKET_BASE, HORIZON = 3 * LANES, 3 * LANES + 1  # one double each: of the packet's own origins, of the horizon

# ---- integers --------------------------------------------------------------------------------------------------------

# The first 48 hold three integers for each lane, see `packets.open_packet`. Then comes the state of the BVH traversal.
SEARCH_LEVEL = 3 * LANES
SEARCH_BLOCK = SEARCH_LEVEL + 1  # for each level, the block that is being visited
SEARCH_CHILDREN = SEARCH_BLOCK + MAX_LEVELS  # for each level, the block's children still to be visited, a bit each
LOW_ROW = SEARCH_CHILDREN + MAX_LEVELS  # first row of the slab that any Gaussian contributes to
HIGH_ROW = LOW_ROW + 1  # the last such row
CANDIDATE = HIGH_ROW + 1  # records found by the traversal and not yet projected
MAX_CANDIDATES = 256
# For each hit: its record, first row, last row, and rows of a block (see `slabs.start_block`).
HIT_RECORD = CANDIDATE + MAX_CANDIDATES
HIT_FIRST, HIT_LAST, HIT_BLOCK, NUM_INTS = (HIT_RECORD + i * (MAX_HITS + 1) for i in range(1, 5))
