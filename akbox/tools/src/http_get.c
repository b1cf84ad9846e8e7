/* http_get: one host call. What it takes and gives is in its manifest. */
#include "ak_tool.h"

AK_IMPORT(http_request) int32_t http_request(const char *request, int32_t size);

int main(void)
{
	return ak_forward(http_request, "\"method\":\"GET\",");
}
