/* file_write: one host call. What it takes and gives is in its manifest. */
#include "ak_tool.h"

AK_IMPORT(fs_write) int32_t fs_write(const char *request, int32_t size);

int main(void)
{
	return ak_forward(fs_write, "");
}
