#include "instantiate.cuh"

CK_NORM_OPERATION(layer_norm, CK_LAYER_NORM)
