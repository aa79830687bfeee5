#include "instantiate.cuh"

CK_NORM_OPERATION(gelu_layer_norm, CK_GELU_LAYER_NORM)
