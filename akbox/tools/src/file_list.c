/* file_list: one host call. What it takes and gives is in its manifest. */
#include "ak_tool.h"

AK_IMPORT(fs_list) int32_t fs_list(const char *request, int32_t size);

int main(void)
{
	return ak_forward(fs_list, "");
}
