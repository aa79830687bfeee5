#include "instantiate.cuh"

CK_NORM_OPERATION(layer_norm_gelu, CK_LAYER_NORM_GELU)
