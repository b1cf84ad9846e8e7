/* identity: prints who the process is and what it may do. The kit installs copies of it set-uid and with file
 * capabilities; run bare they gain something, inside a sandbox they must not. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
	char line[256];
	FILE *status = fopen("/proc/self/status", "re");

	printf("uid %d euid %d\n", (int)getuid(), (int)geteuid());
	if (status == NULL)
		return 1;
	while (fgets(line, sizeof line, status) != NULL)
		if (strncmp(line, "Cap", 3) == 0 || strncmp(line, "NoNewPrivs", 10) == 0)
			(void)fputs(line, stdout);
	return fclose(status) == 0 ? 0 : 1;
}
