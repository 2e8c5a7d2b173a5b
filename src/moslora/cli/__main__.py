from moslora.cli import main

main()
