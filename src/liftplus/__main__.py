from liftplus.cli import main

main()
