// bulk_test.cc, with all streams of each link on one connection.
#define DECENTRAL_TEST_OVER_CARRIERS
#include "tests/bulk_test.cc"
