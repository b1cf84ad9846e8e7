/* seven: exits 77, which no other program here does. It stands for "the denied program ran". */
int main(void)
{
	return 77;
}
