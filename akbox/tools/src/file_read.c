/* file_read: one host call. What it takes and gives is in its manifest. */
#include "ak_tool.h"

AK_IMPORT(fs_read) int32_t fs_read(const char *request, int32_t size);

int main(void)
{
	return ak_forward(fs_read, "");
}
